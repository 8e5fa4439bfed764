"""What a file holds, told by its bytes: for errors that say what to do."""

import gzip
import html
import json
import re
import zlib
from pathlib import Path

HEAD = 4096  # bytes that are looked at
COPY_AGAIN = "Export or download it again"
UNPACK = "Unpack it, and put what is in it in its place"
CONVERT = "Convert it to .nii.gz"
PICTURE = "Export the scan itself, not a picture of it, as .nii.gz"
WEB_PAGE = (
    "Download it again: Google Drive sends a page in place of the file when its download quota is "
    "used up (wait a day, or make a copy in your own Drive) or when nobody is signed in"
)
SERVER = "Download it again: a server sent this message in its place"
# Of each format the bytes, where they stand, and what to say and do.
FORMATS = (
    (b"PK\x03\x04", 0, "a zip archive", UNPACK),
    (b"PK\x05\x06", 0, "an empty zip archive", COPY_AGAIN),
    (b"7z\xbc\xaf\x27\x1c", 0, "a 7z archive", UNPACK),
    (b"Rar!\x1a\x07", 0, "a RAR archive", UNPACK),
    (b"BZh", 0, "packed by bzip2", UNPACK),
    (b"\xfd7zXZ\0", 0, "packed by xz", UNPACK),
    (b"\x28\xb5\x2f\xfd", 0, "packed by zstd", UNPACK),
    (b"ustar", 257, "a tar archive", UNPACK),
    (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", 0, "an old Microsoft Office file", COPY_AGAIN),
    (b"DICM", 128, "a DICOM file", "Convert its whole series to .nii.gz (dcm2niix)"),
    (b"NRRD0", 0, "a NRRD file", CONVERT),
    (b"ObjectType", 0, "a MetaImage file", CONVERT),
    (b"NDims", 0, "a MetaImage file", CONVERT),
    (b"MATLAB", 0, "a MATLAB file", CONVERT),
    (b"\x89HDF\r\n\x1a\n", 0, "an HDF5 file (such as MINC or MATLAB)", CONVERT),
    (b"CDF\x01", 0, "a NetCDF file (such as MINC)", CONVERT),
    (b"\x93NUMPY", 0, "a NumPy array without voxel sizes", "Save it with its affine as .nii.gz"),
    (b"\0\0\0\x01\0\0", 0, "a FreeSurfer volume (.mgh)", "Convert it to .nii.gz (mri_convert)"),
    (b"\0\x05\x16\x07", 0, "macOS's notes on a file, not the file", "Remove it"),
    (b"\x89PNG", 0, "a PNG picture", PICTURE),
    (b"\xff\xd8\xff", 0, "a JPEG picture", PICTURE),
    (b"GIF8", 0, "a GIF picture", PICTURE),
    (b"II*\0", 0, "a TIFF picture", PICTURE),
    (b"MM\0*", 0, "a TIFF picture", PICTURE),
    (b"%PDF", 0, "a PDF document", PICTURE),
    (b"\x1f\x8b", 0, "packed by gzip once more", "Unpack it once (gunzip)"),
)
JOIN = "Convert both to one .nii.gz (nibabel loads the .hdr), and see that left is left"
ENDING = re.compile(r"\.(nii|hdr|img)(\.gz)?$", re.IGNORECASE)
# The size of its header, in either order of bytes, with which a file of each kind begins.
HEADERS = {
    size.to_bytes(4, order): kind
    for size, kind in ((348, "NIfTI-1"), (540, "NIfTI-2"))
    for order in ("little", "big")
}
MARKS = ((b"\xef\xbb\xbf", "utf-8-sig"), (b"\xff\xfe", "utf-16"), (b"\xfe\xff", "utf-16"))


def recognise(head, size):
    """Say what else than expected a file is.

    Parameters
    ----------
    head : bytes
        The first 4096 bytes, or all that there are.
    size : int
        Bytes of the whole file.

    Returns
    -------
    tuple of two str, or None
        What it is, in words that fit after "it is", and what to do; None if it is nothing that is
        known here.
    """
    if not size:
        return "empty (0 bytes)", COPY_AGAIN
    if not head.strip(b"\0"):
        return f"{size} bytes that begin with zeros alone, a copy that never ended", COPY_AGAIN
    for mark, start, name, remedy in FORMATS:
        if head[start : start + len(mark)] == mark:
            return name, remedy
    return _recognise_pointer(head) or _recognise_page(head)


def _recognise_pointer(head):
    if head.startswith((b"version https://git-lfs", b"version https://hawser")):
        told = re.search(rb"^size (\d+)$", head, re.MULTILINE)
        of = f" to {int(told[1])} bytes" if told else ""
        return f"a git-lfs pointer{of}, not the file", "Run git lfs pull where it was cloned"
    if b"annex/objects/" in head[:1000]:
        remedy = "Run git annex get (or datalad get) where it was cloned"
        return "a git-annex pointer, not the file", remedy


def _recognise_page(head):
    text = decode_start(head).lstrip()
    if re.match(r"<!doctype html|<html|<head|<body|<title", text, re.I) or "<html" in text.lower():
        title = re.search(r"<title[^>]*>\s*([^<]{1,80})", text, re.I)
        called = f" titled '{html.unescape(title[1]).strip()}'" if title else ""
        return f"an HTML page{called}, not the file", WEB_PAGE
    if re.match(r"(<\?xml[^>]*>\s*)?<Error>", text):
        return "a server's message of an error (XML)", SERVER


def decode_start(head):
    """Decode the beginning of a text; what is no text becomes question marks."""
    encoding = next((name for mark, name in MARKS if head.startswith(mark)), "utf-8")
    return head.decode(encoding, errors="replace")


def decode(data):
    """Decode a text as Excel and Notepad write it: UTF-8, UTF-16 with its mark, or cp1252.

    Parameters
    ----------
    data : bytes

    Returns
    -------
    str
        Without a byte-order mark.

    Raises
    ------
    ValueError
        If it is none of these.
    """
    for mark, name in MARKS:
        if data.startswith(mark):
            return data.decode(name)
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        return data.decode("cp1252")


def read_text(path, problem="no text"):
    """Read a text file, or say what the file is instead.

    Parameters
    ----------
    path : Path
        Encoded as for `decode`.
    problem : str, optional
        What a message calls a file that is no text.

    Returns
    -------
    str

    Raises
    ------
    ValueError
        If the file is empty or something else than text; names the file and what to do.
    """
    data = Path(path).read_bytes()
    if known := recognise(data[:HEAD], len(data)):
        what, remedy = known
        raise ValueError(f"{path}: {problem}: it is {what}. {remedy}, or remove it.")
    try:
        return decode(data)
    except ValueError as error:
        raise ValueError(f"{path}: {problem} in UTF-8 ({error}). Save it as UTF-8.") from error


def read_json(path, *, by_hand=True):
    """Read a JSON file.

    Parameters
    ----------
    path : str or Path
        Encoded as for `decode`.
    by_hand : bool, default True
        Whether people write it: then a name that stands twice is an error.

    Raises
    ------
    ValueError
        If it is no JSON; names the file and what it is.
    """
    text = read_text(path, "not valid JSON")
    try:
        hook = _refuse_twice if by_hand else None
        return json.loads(text, parse_constant=_refuse_constant, object_pairs_hook=hook)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not valid JSON ({error}). Correct or remove it.") from error


def _refuse_constant(name):
    raise ValueError(f"{name} is no number of JSON")


def _refuse_twice(pairs):
    content = dict(pairs)
    if len(content) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"{twice!r} stands there twice")
    return content


def explain(path, error, is_nifti):
    """Say why a file could not be read as NIfTI, and what to do.

    Parameters
    ----------
    path : Path
    error : Exception
        What the reader met. It is passed on if the bytes are those of a NIfTI file.
    is_nifti : callable
        Tells that of the first bytes: `unetseg.nifti.is_nifti`.

    Returns
    -------
    finding, remedy : str
        Words that fit after "cannot be read as NIfTI:", and a sentence without its end.
    """
    if isinstance(error, MemoryError):
        return f"it takes more memory than is free ({error})", "Take a machine that has more"
    if isinstance(error, OSError) and error.errno:
        return str(error), "Mount Drive again, or see whether you may read the file; try again"
    with open(path, "rb") as file:
        head = file.read(HEAD)
    packed = head[:2] == b"\x1f\x8b"
    inside = _unpack_start(head) if packed else head
    if packed and not inside:  # damaged at its very beginning, or nothing in it
        return _explain_gzip(error) or ("nothing is packed in it (0 bytes)", COPY_AGAIN)
    if not is_nifti(inside):
        size = len(inside) if packed else path.stat().st_size
        if known := _recognise_pair(path, inside) or recognise(inside, size):
            where = "what is packed in it is" if packed else "it is"
            return f"{where} {known[0]}", known[1]
        return _explain_unknown(inside, size)
    return _explain_gzip(error) or (str(error) or repr(error), COPY_AGAIN)


def _unpack_start(head):
    try:
        return zlib.decompressobj(wbits=31).decompress(head, HEAD)
    except zlib.error:
        return b""


def _explain_gzip(error):
    if isinstance(error, EOFError):
        return "truncated: its packed bytes end before their end mark", COPY_AGAIN
    if isinstance(error, gzip.BadGzipFile) and "CRC" in str(error):
        return f"damaged: its checksum is wrong, some bytes have changed ({error})", COPY_AGAIN
    if isinstance(error, gzip.BadGzipFile) and "Not a gzipped" in str(error):
        return "damaged: something that is not gzip follows its packed bytes", COPY_AGAIN
    if isinstance(error, gzip.BadGzipFile | zlib.error):
        return f"damaged: its packed bytes cannot be unpacked by gzip ({error})", COPY_AGAIN


def _recognise_pair(path, head):
    name = ENDING.sub("", path.name)
    kind = HEADERS.get(head[:4])
    if kind == "NIfTI-1" and len(head) >= 348:
        there = _has_sibling(path, name, ".img")
        kind = "the header of a NIfTI pair" if head[344:347] == b"ni1" else "an Analyze header"
        where = "lies beside it" if there else "is not there"
        remedy = JOIN if there else f"Copy {name}.img to the same place. {JOIN}"
        return f"{kind}, not one file in NIfTI-1 or -2: its {name}.img {where}", remedy
    if _has_sibling(path, name, ".hdr") and not (_recognise_pointer(head) or _recognise_page(head)):
        return f"voxels without a header, which is in {name}.hdr", JOIN


def _has_sibling(path, name, ending):
    endings = (ending, f"{ending}.gz", ending.upper())
    return any(path.with_name(name + one).exists() for one in endings if name + one != path.name)


def _explain_unknown(head, size):
    if size < 348 and head[:4] in HEADERS:
        return f"truncated: {size} bytes are there, 348 are needed for a header alone", COPY_AGAIN
    text = decode_start(head[:200])
    if text.isprintable() or re.fullmatch(r"[\w\s!-~]+", text):
        begin = " ".join(text[:60].split())
        kind = "JSON" if begin[:1] in ("{", "[") else "XML" if begin[:1] == "<" else "text"
        return f"it is {kind} ('{begin}')", COPY_AGAIN
    if size < 348:
        return f"{size} bytes are there, 348 are needed for a header alone", COPY_AGAIN
    return "it is neither NIfTI nor any other format that is known here", COPY_AGAIN
