"""What keeps a run safe: its files, locks, copies on Drive, processes, and the machine it is on."""
