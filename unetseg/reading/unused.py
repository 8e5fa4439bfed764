"""Files that look like scans and are of no case: named, so that none is missed."""

import re

from unetseg.run.layout import Run

LIKE_NIFTI = re.compile(r"\.nii\b", re.IGNORECASE)
MOST_NAMED = 5


def say_unused_files(folder, cases, *, apart):
    """Name files that look like NIfTI, in a folder or two levels below, and are of no case.

    Parameters
    ----------
    folder : Path
    cases : sequence of Case
    apart : set of str
        Names of folders in it that are meant for something else. Experiments are left out too.
    """
    used = {path.resolve() for case in cases for path in (*case.files, case.mask) if path}
    unused = []
    for place in _list_folders(folder, apart):
        files = [path for path in sorted(place.glob("[!.]*")) if LIKE_NIFTI.search(path.name)]
        unused += [path for path in files if path.is_file() and path.resolve() not in used]
    if unused:
        more = f" and {len(unused) - MOST_NAMED} more" if len(unused) > MOST_NAMED else ""
        named = ", ".join(path.relative_to(folder).as_posix() for path in unused[:MOST_NAMED])
        advice = "Scans and masks are .nii or .nii.gz files, each kind in one folder"
        print(f"{folder}: files that are not used: {named}{more}. {advice}.")


def _list_folders(folder, apart, levels=2):
    yield folder
    for place in sorted(folder.glob("[!.]*")) if levels else ():
        if place.is_dir() and place.name not in apart and not Run(place).experiment.exists():
            yield from _list_folders(place, (), levels - 1)
