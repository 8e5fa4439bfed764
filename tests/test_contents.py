import gzip
import tarfile
import zipfile

import h5py
import matplotlib.pyplot as plt
import nibabel as nib
import numpy as np
import pytest
import scipy.io
import SimpleITK

from unetseg import nifti
from unetseg.reading import contents
from unetseg.run.layout import read_json

SCAN = np.arange(60, dtype=np.int16).reshape(3, 4, 5)


def write_itk(path, suffix):
    SimpleITK.WriteImage(SimpleITK.GetImageFromArray(SCAN.astype(np.uint16)), f"{path}{suffix}")
    return f"{path}{suffix}"


def write_zip(path):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("scan.nii", b"voxels")


def write_tar(path):
    with tarfile.open(path, "w") as archive:
        archive.addfile(tarfile.TarInfo("scan.nii"))


def write_hdf5(path):
    with h5py.File(path, "w") as file:
        file["scan"] = SCAN


def write_mat(path):
    with open(path, "wb") as file:
        scipy.io.savemat(file, {"scan": SCAN})


def write_picture(kind):
    def write(path):
        with open(path, "wb") as file:
            plt.imsave(file, SCAN[0], format=kind)

    return write


# Written by the programs that write such files, wherever one is at hand.
FILES = {
    "zip": (write_zip, "a zip archive. Unpack it"),
    "tar": (write_tar, "a tar archive. Unpack it"),
    "dicom": (lambda p: write_itk(p, ".dcm"), "a DICOM file. Convert its whole series.*dcm2niix"),
    "nrrd": (lambda p: write_itk(p, ".nrrd"), "a NRRD file. Convert it to .nii.gz"),
    "meta": (lambda p: write_itk(p, ".mha"), "a MetaImage file. Convert it"),
    "png": (write_picture("png"), "a PNG picture. Export the scan itself"),
    "jpeg": (write_picture("jpeg"), "a JPEG picture"),
    "tiff": (write_picture("tiff"), "a TIFF picture"),
    "matlab": (write_mat, "a MATLAB file"),
    "hdf5": (write_hdf5, "an HDF5 file"),
    "numpy": (lambda p: np.save(f"{p}.npy", SCAN) or f"{p}.npy", "a NumPy array.*with its affine"),
    "mgh": (
        lambda p: nib.save(nib.MGHImage(SCAN.astype("i4"), np.eye(4)), f"{p}.mgh") or f"{p}.mgh",
        "a FreeSurfer volume",
    ),
    "json": (lambda p: p.write_text('{"labels": {}}'), "is JSON .'{\"labels\": {}}'"),
    "xml": (lambda p: p.write_text("<svg>  <path/>\n</svg>"), "is XML .'<svg> <path/> </svg>'"),
    "text": (lambda p: p.write_text("404: Not Found"), "is text .'404: Not Found'"),
    "s3": (
        lambda p: p.write_text('<?xml version="1.0"?>\n<Error><Code>AccessDenied</Code></Error>'),
        "a server's message of an error.*Download it again",
    ),
    "page": (
        lambda p: p.write_text("\ufeff\n<html><title>Sign in &amp; go</title>", "utf-8"),
        "an HTML page titled 'Sign in & go', not the file",
    ),
    "page in utf-16": (lambda p: p.write_text("<!DOCTYPE html>", "utf-16"), "an HTML page, not"),
    "annex": (lambda p: p.write_text("../.git/annex/objects/a/b/MD5E-s1--2.nii"), "git annex get"),
    "apple": (
        lambda p: p.write_bytes(b"\0\x05\x16\x07\0\2\0\0Mac OS X" + bytes(90)),
        "macOS's not",
    ),
    "noise": (
        lambda p: p.write_bytes(np.random.default_rng(0).bytes(900)),
        "neither NIfTI nor any other format",
    ),
    "short noise": (lambda p: p.write_bytes(b"\1\2\3\4"), "4 bytes are there, 348 are needed"),
}


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("kind", FILES)
def test_a_file_of_another_kind_is_told_by_what_it_is(kind, packed, tmp_path):
    write, words = FILES[kind]
    written = write(tmp_path / "other")
    data = (tmp_path / (written if isinstance(written, str) else "other")).read_bytes()
    (tmp_path / "scan.nii.gz").write_bytes(gzip.compress(data) if packed else data)
    with pytest.raises(ValueError, match=words) as error:
        nifti.load_image(tmp_path / "scan.nii.gz")
    message = str(error.value)
    assert message.startswith(f"{tmp_path / 'scan.nii.gz'}: cannot be read as NIfTI: ")
    assert message.endswith(", or remove the case.")
    assert "b'" not in message


@pytest.mark.parametrize("kind", [nib.AnalyzeImage, nib.Spm99AnalyzeImage, nib.Nifti1Pair])
@pytest.mark.parametrize("whole", [True, False])
def test_half_of_a_pair_is_told_and_whether_the_other_half_is_there(kind, whole, tmp_path):
    nib.save(kind(SCAN, np.eye(4)), tmp_path / "a.img")
    name = "a NIfTI pair" if kind is nib.Nifti1Pair else "an Analyze header"
    (tmp_path / "a.hdr").rename(tmp_path / "a.nii")
    words = f"{name}.*its a.img lies beside it. Convert both"
    if not whole:
        (tmp_path / "a.img").unlink()
        words = f"{name}.*its a.img is not there. Copy a.img to the same place. Convert both"
    with pytest.raises(ValueError, match=words):
        nifti.load_image(tmp_path / "a.nii")


def test_voxels_without_their_header_are_told(tmp_path):
    nib.save(nib.Nifti1Pair(SCAN, np.eye(4)), tmp_path / "a.img")
    (tmp_path / "a.img").rename(tmp_path / "a.nii")
    with pytest.raises(ValueError, match=r"voxels without a header, which is in a\.hdr. Convert"):
        nifti.load_image(tmp_path / "a.nii")


def test_a_file_that_may_not_be_read_is_not_called_damaged(tmp_path, monkeypatch):
    path = tmp_path / "a.nii"
    nib.save(nib.Nifti1Image(SCAN, np.eye(4)), path)

    def fail(*args):
        raise OSError(107, "Transport endpoint is not connected", str(path))

    monkeypatch.setattr(nifti, "_read_header", fail)
    with pytest.raises(ValueError, match=r"Transport endpoint is not connected.*Mount Drive again"):
        nifti.read(path)


SENTENCE = 'name;"Müller, Zoë"'


@pytest.mark.parametrize(
    ("encoding", "text"),
    [
        ("utf-8", SENTENCE),
        ("utf-8-sig", SENTENCE),
        ("utf-16", SENTENCE),
        ("utf-16-le", "\ufeff" + SENTENCE),
        ("utf-16-be", "\ufeff" + SENTENCE),
        ("cp1252", SENTENCE),
    ],
)
def test_texts_are_decoded_as_excel_and_notepad_write_them(encoding, text, tmp_path):
    (tmp_path / "a.csv").write_bytes(text.encode(encoding))
    assert contents.read_text(tmp_path / "a.csv") == SENTENCE


def test_bytes_that_are_no_text_are_refused_by_name(tmp_path):
    (tmp_path / "a.csv").write_bytes(b"a\x81b")
    with pytest.raises(
        ValueError, match=r"a\.csv: (no text|no table of text) in UTF-8.*Save it as UTF-8"
    ):
        contents.read_text(tmp_path / "a.csv")


NOT_JSON = {
    b"": r"it is empty \(0 bytes\)",
    b"<!doctype html><title>Quota exceeded</title>": "an HTML page titled 'Quota exceeded'.*quota",
    b"version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 7\n": "Run git lfs pull",
    b"../.git/annex/objects/x": "git annex get",
    b"PK\x03\x04abc": "a zip archive. Unpack it",
    bytes(300): "300 bytes that begin with zeros alone",
}


@pytest.mark.parametrize("content", NOT_JSON)
@pytest.mark.parametrize("name", ["dataset.json", "splits.json"])
def test_a_file_that_is_no_json_is_told_by_what_it_is(name, content, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=f"{name}: .*{NOT_JSON[content]}"):
        read_json(tmp_path / name)


def test_a_name_that_stands_twice_is_refused_where_people_write(tmp_path):
    (tmp_path / "dataset.json").write_text('{"a": 1, "b": {"c": 1, "c": 2}}')
    with pytest.raises(ValueError, match=r"dataset\.json: not valid JSON \('c' stands there twice"):
        read_json(tmp_path / "dataset.json")


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "cp1252"])
def test_json_that_notepad_saved_is_read(encoding, tmp_path):
    (tmp_path / "a.json").write_bytes('{"name":\r\n "Zoë"}'.encode(encoding))
    assert read_json(tmp_path / "a.json") == {"name": "Zoë"}
