import gzip
import math
import re
import tracemalloc
import warnings
from decimal import Decimal
from itertools import permutations, product

import nibabel as nib
import numpy as np
import pytest
import SimpleITK
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from unetseg import nifti
from unetseg.cases import Case, check_cases

SHAPE = (4, 5, 6)
# Three letters, one of L/R, P/A and I/S each, in any order: 6 orders x 8 signs.
AXIS_CODES = ["".join(c) for ends in product("LR", "PA", "IS") for c in permutations(ends)]


def tilted_affine():
    """RAS+, voxels of 1.5 x 2 x 3 mm, doubly oblique: turned about all three axes."""
    affine = np.diag([1.5, 2, 3, 1])
    turn = Rotation.from_euler("xyz", (12, -7, 10), degrees=True).as_matrix()
    affine[:3, :3] = turn @ affine[:3, :3]
    affine[:3, 3] = (-4, 12, -30)
    return affine


def raw_nifti(array, *, sform=None, qform=None, kind=nib.Nifti1Header, **fields):
    """Bytes of a NIfTI file with the given forms, and header fields as a bad writer sets them."""
    header = kind()
    header.set_data_dtype(array.dtype)
    header.set_data_shape(array.shape)
    for form, setter in ((qform, header.set_qform), (sform, header.set_sform)):
        if form is not None:
            header.set_zooms((*nib.affines.voxel_sizes(form), *[1] * 4)[: array.ndim])
            setter(form, 1)
    start = kind.sizeof_hdr + 4
    for name, value in {"vox_offset": start, "scl_slope": 1, "scl_inter": 0, **fields}.items():
        header[name] = value
    return header.binaryblock + bytes(4) + array.tobytes(order="F")


def stored_as(codes, array, affine):
    """Store an RAS+ array along the given axis codes, by transposing and flipping.

    Storage axis k runs along the RAS axis that its letter names, backwards for L, P and I; then
    its affine column is reversed and the origin moves to the other end of that axis.
    """
    axes = ["LPI".find(c) if c in "LPI" else "RAS".find(c) for c in codes]
    stored, turned = array.transpose(axes), affine.copy()
    for k, (code, axis) in enumerate(zip(codes, axes, strict=True)):
        turned[:, k] = affine[:, axis]
        if code in "LPI":
            stored = np.flip(stored, k)
            turned[:, k] *= -1
            turned[:, 3] += affine[:, axis] * (array.shape[axis] - 1)
    return stored, turned


def places_mm(array, affine):
    """World coordinates of the voxels that are not 0, by value."""
    return {int(array[tuple(i)]): affine[:3] @ [*i, 1] for i in np.argwhere(array)}


def save(path, array, affine, kind=nib.Nifti1Image, **kwargs):
    nib.save(kind(array, affine, **kwargs), path)
    return path


@pytest.fixture
def truth():
    """An RAS+ scan whose voxels all differ, with its affine."""
    numbers = np.random.default_rng(0).permutation(np.prod(SHAPE))
    return numbers.reshape(SHAPE).astype(np.int16), tilted_affine()


@pytest.mark.parametrize("codes", AXIS_CODES)
def test_every_orientation_goes_to_ras_and_back_with_every_voxel_at_its_place(
    codes, truth, tmp_path
):
    stored, affine = stored_as(codes, *truth)
    scan = save(tmp_path / "scan.nii.gz", stored, affine)
    assert "".join(nib.aff2axcodes(nib.load(scan).affine)) == codes

    image, ras = nifti.load_image(scan)
    np.testing.assert_array_equal(image, truth[0])
    np.testing.assert_allclose(ras, truth[1], atol=1e-5)
    closest = nib.as_closest_canonical(nib.load(scan))
    np.testing.assert_array_equal(image, closest.get_fdata())
    np.testing.assert_allclose(ras, closest.affine, atol=1e-5)

    mask = np.zeros(SHAPE, np.uint8)
    mask[0, 1, 2], mask[3, 4, 5], mask[1, 0, 5] = 1, 2, 3
    # Voxel centres in mm, from the first three columns of the tilted affine.
    columns = truth[1][:3].T
    voxels = {1: (0, 1, 2), 2: (3, 4, 5), 3: (1, 0, 5)}
    expected = {v: np.dot(index, columns[:3]) + columns[3] for v, index in voxels.items()}
    nifti.save_mask(tmp_path / "mask.nii.gz", mask, scan)
    saved = nib.load(tmp_path / "mask.nii.gz")
    assert saved.shape == nib.load(scan).shape
    np.testing.assert_array_equal(saved.affine, nib.load(scan).affine)
    found = places_mm(np.asarray(saved.dataobj), saved.affine)
    assert found.keys() == expected.keys()
    for value, place in expected.items():
        np.testing.assert_allclose(found[value], place, atol=1e-4)
    again, affine_again = nifti.load_mask(tmp_path / "mask.nii.gz")
    np.testing.assert_array_equal(again, mask)
    np.testing.assert_allclose(affine_again, truth[1], atol=1e-5)


@pytest.mark.parametrize("codes", ["RAS", "LPS", "LAS", "PIR", "ASL"])
def test_the_left_half_stays_on_the_left(codes, tmp_path):
    affine = np.diag([1.5, 2, 3, 1])
    affine[0, 3] = -2.25  # centres at x = -2.25, -0.75, 0.75, 2.25 mm
    stored, turned = stored_as(codes, np.zeros(SHAPE, np.int16), affine)
    scan = save(tmp_path / "scan.nii", stored, turned)
    mask = np.ones(SHAPE, np.uint8)
    mask[2:] = 2
    nifti.save_mask(tmp_path / "mask.nii.gz", mask, scan)
    saved = nib.load(tmp_path / "mask.nii.gz")
    values = np.asarray(saved.dataobj)
    x_mm = nib.affines.apply_affine(saved.affine, np.moveaxis(np.indices(values.shape), 0, -1))
    np.testing.assert_array_equal(values, np.where(x_mm[..., 0] < 0, 1, 2))


@pytest.mark.parametrize("codes", AXIS_CODES[::5])
def test_from_canonical_undoes_to_canonical_with_channels(codes, truth):
    channels = np.stack([truth[0], -truth[0]], axis=-1)
    stored, affine = stored_as(codes, truth[0], truth[1])
    stored = np.stack([stored, -stored], axis=-1)
    array, ras = nifti.to_canonical(stored, affine)
    np.testing.assert_array_equal(array, channels)
    np.testing.assert_allclose(ras, truth[1], atol=1e-9)
    np.testing.assert_array_equal(nifti.from_canonical(array, affine), stored)


@pytest.mark.parametrize(
    ("stored", "expected"),
    [
        ((4, 5), (4, 5, 1)),
        ((4, 5, 6), (4, 5, 6)),
        ((4, 5, 6, 1), (4, 5, 6)),
        ((4, 5, 6, 1, 1), (4, 5, 6)),
        ((4, 5, 6, 3), (4, 5, 6, 3)),
        ((4, 5, 6, 1, 3), (4, 5, 6, 3)),
        ((4, 5, 1, 3), (4, 5, 1, 3)),
    ],
)
def test_axes_are_x_y_z_and_channels_where_there_are_several(stored, expected, affine, tmp_path):
    array = np.arange(np.prod(stored), dtype=np.int16).reshape(stored)
    path = save(tmp_path / "scan.nii.gz", array, affine)
    image, loaded_affine = nifti.load_image(path)
    assert image.dtype == np.float32
    np.testing.assert_array_equal(image, array.reshape(expected))
    np.testing.assert_array_equal(loaded_affine, affine)


@pytest.mark.parametrize("stored", [(4, 5), (4, 5, 6, 1), (4, 5, 6, 2)])
def test_a_mask_is_saved_on_scans_that_are_not_3d(stored, affine, tmp_path):
    scan = save(tmp_path / "scan.nii.gz", np.zeros(stored, np.int16), affine)
    shape = (*stored, 1)[:3]
    mask = np.arange(np.prod(shape)).reshape(shape) % 3
    nifti.save_mask(tmp_path / "mask.nii.gz", mask, scan)
    assert nib.load(tmp_path / "mask.nii.gz").shape == stored[:3]
    again, again_affine = nifti.load_mask(tmp_path / "mask.nii.gz")
    np.testing.assert_array_equal(again, mask)
    np.testing.assert_array_equal(again_affine, affine)


def test_several_files_become_channels_in_their_order_whatever_their_storage(truth, tmp_path):
    array, affine = truth
    first = save(tmp_path / "a_0000.nii.gz", array, affine)
    second = save(tmp_path / "a_0001.nii.gz", *stored_as("SLP", 2 * array, affine))
    image, loaded_affine = nifti.load_image((first, second))
    np.testing.assert_array_equal(image, np.stack([array, 2 * array], axis=-1))
    np.testing.assert_allclose(loaded_affine, affine, atol=1e-5)


@pytest.mark.parametrize(
    ("shape", "shift_mm", "words"), [((4, 5, 7), 0, "shape"), ((4, 5, 6), 0.7, "0.7 mm")]
)
def test_channels_on_different_grids_are_refused(shape, shift_mm, words, affine, tmp_path):
    moved = affine.copy()
    moved[0, 3] += shift_mm
    first = save(tmp_path / "a_0000.nii.gz", np.zeros(SHAPE, np.int16), affine)
    second = save(tmp_path / "a_0001.nii.gz", np.zeros(shape, np.int16), moved)
    with pytest.raises(ValueError, match=f"a_0001.*{words}"):
        nifti.load_image((first, second))


def test_a_file_with_channels_is_refused_as_one_of_several_channels(affine, tmp_path):
    first = save(tmp_path / "a_0000.nii.gz", np.zeros((4, 5, 6, 2), np.int16), affine)
    with pytest.raises(ValueError, match="a_0000"):
        nifti.load_image((first, first))


@pytest.mark.parametrize(
    ("shift_mm", "same"),
    [((0.09, 0, 0), True), ((0, 0, 0.11), False), ((0, 0.2, 0), False)],
)
def test_grids_are_the_same_within_a_tenth_of_the_smallest_voxel_side(shift_mm, same, affine):
    # The smallest side is 1 mm, so 0.1 mm in any direction.
    moved = affine.copy()
    moved[:3, 3] += shift_mm
    assert (nifti.describe_grid_mismatch(SHAPE, affine, SHAPE, moved) == "") is same


def test_a_small_turn_is_found_at_the_far_corner(affine):
    turned = affine.copy()
    turned[1, 0] = 0.01  # over 99 voxels along x: 0.99 mm along y
    assert nifti.describe_grid_mismatch((3, 5, 6), affine, (3, 5, 6), turned) == ""
    assert "0.99 mm" in nifti.describe_grid_mismatch((100, 5, 6), affine, (100, 5, 6), turned)


@pytest.mark.parametrize("value", [1.9999999995, 2.0000000005, 2.0009, 2])
def test_a_mask_in_floating_point_is_rounded(value, affine, tmp_path):
    array = np.full(SHAPE, value, np.float64)
    mask, _ = nifti.load_mask(save(tmp_path / "mask.nii.gz", array, affine))
    assert mask.dtype == np.int32
    np.testing.assert_array_equal(mask, np.full(SHAPE, 2))


@pytest.mark.parametrize("value", [0.5, 1.01, np.nan, np.inf, -np.inf])
def test_a_mask_with_fractions_is_refused(value, affine, tmp_path):
    array = np.zeros(SHAPE, np.float32)
    array[1, 2, 3] = value
    path = save(tmp_path / "mask.nii.gz", array, affine)
    with pytest.raises(ValueError, match=r"mask\.nii\.gz.*whole label values"):
        nifti.load_mask(path)


@pytest.mark.parametrize(
    ("value", "dtype"), [(2**40, np.int64), (2**31, np.uint32), (3e9, np.float64)]
)
def test_a_label_too_large_for_int32_is_refused_instead_of_changed(value, dtype, affine, tmp_path):
    array = np.full(SHAPE, value, dtype)
    path = save(tmp_path / "mask.nii.gz", array, affine, dtype=dtype)
    with pytest.raises(ValueError, match=r"mask\.nii\.gz"):
        nifti.load_mask(path)


def test_a_mask_of_scaled_integers_holds_the_scaled_values(affine, tmp_path):
    image = nib.Nifti1Image(np.zeros(SHAPE, np.int16), affine)
    image.header.set_slope_inter(0.004, 1)
    raw = bytearray(image.to_bytes())
    stored = np.zeros(SHAPE, "<i2")
    stored[0, 1, 2] = 500  # 500 * 0.004 + 1 = 3, and the background becomes 1
    raw[352:] = stored.tobytes(order="F")
    (tmp_path / "mask.nii").write_bytes(raw)
    mask, _ = nifti.load_mask(tmp_path / "mask.nii")
    expected = np.ones(SHAPE)
    expected[0, 1, 2] = 3
    np.testing.assert_array_equal(mask, expected)


def test_a_mask_on_a_scan_of_scaled_integers_is_not_scaled(affine, tmp_path):
    image = nib.Nifti1Image(np.zeros(SHAPE, np.int16), affine)
    image.header.set_slope_inter(0.5, -3)
    (tmp_path / "scan.nii").write_bytes(image.to_bytes())
    mask = np.full(SHAPE, 5, np.uint8)
    nifti.save_mask(tmp_path / "mask.nii", mask, tmp_path / "scan.nii")
    np.testing.assert_array_equal(nib.load(tmp_path / "mask.nii").get_fdata(), mask)


@pytest.mark.parametrize(
    ("dtype", "fields", "expected"),
    [
        ("<i2", {}, 5),
        (">i2", {}, 5),
        ("<i8", {}, 5),
        ("<f8", {}, 5),
        ("<i2", {"scl_slope": 0, "scl_inter": 7}, 5),  # slope 0: not scaled, says the standard
        ("<u2", {"scl_slope": 2.5, "scl_inter": -1}, 11.5),
    ],
)
def test_voxels_are_read_as_stored_and_scaled(dtype, fields, expected, affine, tmp_path):
    header = nib.Nifti1Header(endianness=dtype[0])
    header.set_data_dtype(dtype)
    header.set_data_shape(SHAPE)
    header.set_sform(affine, 1)
    header.set_zooms((1, 2, 3))
    header["vox_offset"] = 352
    for name, value in {"scl_slope": 1, "scl_inter": 0, **fields}.items():
        header[name] = value
    array = np.full(SHAPE, 5, dtype)
    (tmp_path / "scan.nii").write_bytes(header.binaryblock + bytes(4) + array.tobytes())
    image, loaded_affine = nifti.load_image(tmp_path / "scan.nii")
    np.testing.assert_array_equal(image, np.full(SHAPE, expected))
    np.testing.assert_array_equal(loaded_affine, affine)


def test_voxels_too_large_for_float32_become_infinite_without_a_warning(affine, tmp_path):
    path = save(tmp_path / "scan.nii", np.full(SHAPE, -1e300), affine)
    np.testing.assert_array_equal(nifti.load_image(path)[0], np.full(SHAPE, -np.inf))


# Of 5, by the standard for a slope of 0; by ITK, which the last column of the test compares with.
SCALINGS = [(slope, inter, 5) for slope in (np.nan, np.inf, -np.inf, 0) for inter in (0, np.nan)]
SCALINGS += [(np.nan, 7, 5), (0, np.inf, 5), (2.5, np.nan, 12.5), (2.5, -np.inf, 12.5)]
BAD_SCALINGS = pytest.mark.parametrize(("slope", "inter", "expected"), SCALINGS)


@pytest.fixture
def write_scaled(tmp_path):
    """Return a function that writes 5 and, in one voxel, 0, under a header that scales."""

    def write(slope, inter, kind=nib.Nifti1Header, **fields):
        array = np.full(SHAPE, 5, np.int16)
        array[1, 2, 3] = 0
        scaling = {"scl_slope": slope, "scl_inter": inter, **fields}
        (tmp_path / "scan.nii").write_bytes(raw_nifti(array, sform=GRID, kind=kind, **scaling))
        return tmp_path / "scan.nii"

    return write


@pytest.mark.parametrize("kind", [nib.Nifti1Header, nib.Nifti2Header])
@BAD_SCALINGS
def test_a_scaling_that_is_no_number_scales_nothing(slope, inter, expected, kind, write_scaled):
    path = write_scaled(slope, inter, kind)
    values, counts = np.unique(nifti.load_image(path)[0], return_counts=True)
    assert values.tolist() == [0, expected]
    assert counts.tolist() == [1, 119]
    assert np.isfinite(nifti.read(path, voxels=False)["scl_slope"])
    # ITK adds 7 although nothing is scaled, against the standard.
    if inter != 7 and kind is nib.Nifti1Header:
        itk = SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(path))
        assert np.unique(itk).tolist() == [0, expected]
    if expected == 5:
        assert np.unique(nifti.load_mask(path)[0]).tolist() == [0, 5]


@BAD_SCALINGS
def test_what_is_saved_like_a_scan_of_no_scaling_is_not_scaled(
    slope, inter, expected, write_scaled, tmp_path
):
    scan = write_scaled(slope, inter)
    mask = np.arange(120, dtype=np.uint8).reshape(SHAPE)
    nifti.save_mask(tmp_path / "mask.nii.gz", mask, scan)
    nifti.save_map(tmp_path / "map.nii.gz", mask / 8, scan)
    for name, values in (("mask.nii.gz", mask), ("map.nii.gz", mask / 8)):
        saved = nib.load(tmp_path / name)
        assert (saved.dataobj.slope, saved.dataobj.inter) == (1, 0)
        itk = SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(tmp_path / name))
        np.testing.assert_array_equal(itk.T[::-1], values)  # stored from right to left
    np.testing.assert_array_equal(nifti.load_mask(tmp_path / "mask.nii.gz")[0], mask)
    np.testing.assert_array_equal(nifti.load_image(tmp_path / "map.nii.gz")[0], mask / 8)


def test_a_scan_of_no_scaling_is_no_problem(write_scaled, tmp_path):
    scan = write_scaled(np.nan, np.nan)
    nifti.save_mask(
        tmp_path / "mask.nii", np.repeat(np.eye(4, 5, dtype=int)[..., None], 6, 2), scan
    )
    (row,) = check_cases([Case("a", scan, tmp_path / "mask.nii")]).to_dict("records")
    assert (row["problem"], row["intensity_median"], row["labels"]) == ("", 5, (1,))


@pytest.mark.parametrize("slope", [1e308, -1e308])
def test_scaling_beyond_all_numbers_gives_infinity_without_a_warning(slope, affine, tmp_path):
    path = tmp_path / "scan.nii"
    array = np.full(SHAPE, 30, np.int16)
    path.write_bytes(raw_nifti(array, sform=affine, kind=nib.Nifti2Header, scl_slope=slope))
    np.testing.assert_array_equal(nifti.load_image(path)[0], np.full(SHAPE, slope * np.inf))


def test_a_mask_with_channels_is_refused(affine, tmp_path):
    path = save(tmp_path / "mask.nii.gz", np.zeros((4, 5, 6, 2), np.uint8), affine)
    with pytest.raises(ValueError, match=r"mask\.nii\.gz.*\(4, 5, 6, 2\)"):
        nifti.load_mask(path)


def test_a_scan_that_is_not_grey_scale_is_refused(affine, tmp_path):
    rgb = np.zeros(SHAPE, [("R", "u1"), ("G", "u1"), ("B", "u1")])
    for name, array in (("rgb.nii", rgb), ("complex.nii", np.zeros(SHAPE, np.complex64))):
        for reader in (nifti.load_image, nifti.load_mask):
            with pytest.raises(ValueError, match=rf"{name}: voxels of type.*grey-scale"):
                reader(save(tmp_path / name, array, affine))
    with pytest.raises(ValueError, match=r"six.nii.*\(4, 5, 6, 2, 2\)"):
        nifti.load_image(save(tmp_path / "six.nii", np.zeros((*SHAPE, 2, 2), np.uint8), affine))


def flip_bit(data, position):
    data = bytearray(data)
    data[position] ^= 1
    return bytes(data)


def with_fields(raw, **fields):
    header = nib.Nifti1Header(raw[:348], check=False)
    for name, value in fields.items():
        header[name] = value
    return header.binaryblock + raw[348:]


def flip_checksum(data):
    return data[:-8] + bytes([data[-8] ^ 1]) + data[-7:]


def lfs_pointer(size):
    version = "version https://git-lfs.github.com/spec/v1"
    return f"{version}\noid sha256:{'4d' * 32}\nsize {size}\n".encode()


PROMISES = "its header promises shape"
QUOTA = b"<!DOCTYPE html><html><head><title>Google Drive - Quota exceeded</title>"
# The header has 352 bytes and the 120 voxels have 240.
BROKEN = {
    "cut_in_the_header.nii.gz": (lambda raw: gzip.compress(raw, 0)[:60], "truncated: .*348 are"),
    "cut_near_the_end.nii.gz": (
        lambda raw: gzip.compress(raw, 0)[:-28],
        "truncated: 572 bytes can be unpacked, 592 are needed.*download it again",
    ),
    "cut_in_its_checksum.nii.gz": (lambda raw: gzip.compress(raw)[:-3], "truncated: 592 bytes can"),
    "cut_near_the_end.nii": (lambda raw: raw[:-20], "truncated: 572 bytes are there, 592 are need"),
    "cut_before_it_was_compressed.nii.gz": (
        lambda raw: gzip.compress(raw[:-20]),
        "truncated: 572 bytes can be unpacked, 592 are needed",
    ),
    "cut_in_the_header.nii": (
        lambda raw: raw[:200],
        "truncated: 200 bytes are there, 348 are need",
    ),
    # Stored without compression, so that a voxel changes and nothing else.
    "bit_of_a_voxel_flipped.nii.gz": (
        lambda raw: flip_bit(gzip.compress(raw, 0), -20),
        "damaged: its checksum is wrong.*CRC.*download it again",
    ),
    "wrong_checksum.nii.gz": (lambda raw: flip_checksum(gzip.compress(raw)), "checksum is wrong"),
    "bit_of_the_stream_flipped.nii.gz": (lambda raw: flip_bit(gzip.compress(raw), 150), ""),
    "web_page.nii.gz": (
        lambda raw: QUOTA * 30,
        "an HTML page titled 'Google Drive - Quota exceeded', not the file. Download it.*quota",
    ),
    "packed_web_page.nii.gz": (
        lambda raw: gzip.compress(QUOTA * 9),
        "packed in it is an HTML page",
    ),
    "short_web_page.nii.gz": (lambda raw: b"<!DOCTYPE html><title>Quota", "an HTML page"),
    "git_lfs.nii.gz": (
        lambda raw: lfs_pointer(8123),
        "git-lfs pointer to 8123 b.*Run git lfs pull",
    ),
    "git_annex.nii.gz": (
        lambda raw: b"/annex/objects/MD5E-s1--2.nii.gz\n",
        "git-annex pointer, .*git annex get",
    ),
    "zip.nii.gz": (lambda raw: b"PK\x03\x04" + raw, "it is a zip archive. Unpack it"),
    "empty.nii.gz": (lambda raw: b"", r"it is empty \(0 bytes\)"),
    "empty_inside.nii.gz": (lambda raw: gzip.compress(b""), r"nothing is packed in it \(0 bytes\)"),
    "packed_twice.nii.gz": (
        lambda raw: gzip.compress(gzip.compress(raw)),
        "gzip once more. Unpack",
    ),
    "zeros.nii": (lambda raw: bytes(len(raw)), "592 bytes that begin with zeros alone"),
    "bad_magic.nii": (
        lambda raw: with_fields(raw, magic=b"n?1"),
        "Analyze.*bad_magic.img is not th",
    ),
    "half_of_a_pair.nii": (
        lambda raw: with_fields(raw, magic=b"ni1"),
        "the header of a NIfTI pair, .*: its half_of_a_pair.img is not there. Copy half_of_a",
    ),
    "unknown_type.nii": (lambda raw: with_fields(raw, datatype=9999), "9999"),
    "no_axis.nii": (lambda raw: with_fields(raw, dim=[0] * 8), PROMISES),
    "one_axis.nii": (lambda raw: with_fields(raw, dim=[1, 120, 1, 1, 1, 1, 1, 1]), PROMISES),
    "an_axis_of_0.nii": (lambda raw: with_fields(raw, dim=[3, 4, 0, 6, 1, 1, 1, 1]), PROMISES),
    "a_negative_axis.nii": (lambda raw: with_fields(raw, dim=[3, 4, -5, -6, 1, 1, 1, 1]), PROMISES),
    "larger_than_the_file.nii.gz": (
        lambda raw: gzip.compress(with_fields(raw, dim=[3, 512, 512, 512, 1, 1, 1, 1])),
        "truncated: .* 268435808 are needed; its header promises shape .512, 512, 512.",
    ),
    "larger_than_memory.nii": (
        lambda raw: with_fields(raw, dim=[3, 30000, 30000, 30000, 1, 1, 1, 1]),
        f"shape .30000, 30000, 30000. .*{2**30} voxels .*are allowed",
    ),
    "late_start.nii": (
        lambda raw: with_fields(raw, vox_offset=4000),
        "truncated: 592 bytes are there, 4240 are needed",
    ),
    "early_start.nii": (lambda raw: with_fields(raw, vox_offset=16), "offset"),
    "start_nowhere.nii": (lambda raw: with_fields(raw, vox_offset=np.nan), "NaN"),
    "bytes_after_the_end.nii": (lambda raw: raw + b"\0", "593 bytes or more, not the 592"),
    "bytes_after_the_end.nii.gz": (lambda raw: gzip.compress(raw + b"\0"), "not the 592"),
    "garbage_after_the_end.nii.gz": (
        lambda raw: gzip.compress(raw) + b"Jane",
        "damaged: something that is not gzip follows",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_file_is_refused_by_name_by_every_reader(name, truth, tmp_path):
    stored, affine = truth
    path = tmp_path / name
    damage, finding = BROKEN[name]
    path.write_bytes(damage(nib.Nifti1Image(stored, affine).to_bytes()))
    words = f"{name}: cannot be read as NIfTI: .*{finding}.*or remove the case"
    for reader in (nifti.read, nifti.load_image, nifti.load_mask):
        with pytest.raises(ValueError, match=words) as error:
            reader(path)
        assert "begins with b'" not in str(error.value)
    # What has a sound header is good enough to say on which grid a mask is saved.
    if not _is_header_sound(path):
        with pytest.raises(ValueError, match=words):
            nifti.save_mask(tmp_path / "mask.nii.gz", stored, path)
        assert not (tmp_path / "mask.nii.gz").exists()


def _is_header_sound(path):
    try:
        nifti.read(path, voxels=False)
    except ValueError:
        return False
    return True


def test_no_more_is_decompressed_than_the_header_promises(truth, tmp_path):
    raw = nib.Nifti1Image(*truth).to_bytes()
    (tmp_path / "bomb.nii.gz").write_bytes(gzip.compress(raw + bytes(2**27)))  # 128 MiB
    promise = with_fields(raw, dim=[3, 512, 512, 512, 1, 1, 1, 1])
    (tmp_path / "promise.nii.gz").write_bytes(gzip.compress(promise))
    tracemalloc.start()
    for name in ("bomb.nii.gz", "promise.nii.gz"):
        with pytest.raises(ValueError, match=name):
            nifti.read(tmp_path / name)
    assert tracemalloc.get_traced_memory()[1] < 2**22
    tracemalloc.stop()


def test_a_missing_file_is_named(tmp_path):
    (tmp_path / "link.nii.gz").symlink_to(tmp_path / "gone.nii.gz")
    annexed = tmp_path / "annexed.nii.gz"
    annexed.symlink_to(".git/annex/objects/K7/2v/MD5E-s12--ab.nii.gz/MD5E-s12--ab.nii.gz")
    for path, advice in (
        (tmp_path / "nowhere.nii.gz", "Check the spelling, or"),
        (tmp_path / "link.nii.gz", "Fetch what the link leads to, or"),
        (annexed, r"Fetch what the link leads to \(git annex get, or datalad get\), or remove"),
        (tmp_path, r"Check the spelling \(this is a folder\), or remove"),
    ):
        for reader in (nifti.load_image, nifti.load_mask):
            with pytest.raises(FileNotFoundError, match=f"{path}: no such file. {advice}"):
                reader(path)


def test_a_link_is_followed(truth, tmp_path):
    (tmp_path / "far").mkdir()
    (tmp_path / "scan.nii.gz").symlink_to(save(tmp_path / "far" / "away.nii", *truth))
    np.testing.assert_array_equal(nifti.load_image(tmp_path / "scan.nii.gz")[0], truth[0])


@pytest.mark.parametrize(
    "rows",
    [
        [(1, 0, 0, 0), (2, 0, 0, 0), (0, 0, 3, 0)],  # two axes along one direction
        [(0, 0, 0, 0), (0, 2, 0, 0), (0, 0, 3, 0)],  # an axis along none
        [(np.nan, 0, 0, 0), (0, 2, 0, 0), (0, 0, 3, 0)],
        [(1, 0, 1, 0), (1, 1, 2, 0), (0, 1, 1, 0)],  # the third axis in the plane of the others
        [(0.7, 0, 0.7, 0), (0.1, 0.3, 0.4, 0), (0, 0.9, 0.9, 0)],  # so but for rounding
    ],
)
def test_an_affine_that_places_no_voxels_is_refused(rows, tmp_path):
    image = nib.Nifti1Image(np.zeros(SHAPE, np.int16), None)
    image.header["sform_code"] = 1
    for name, row in zip(("srow_x", "srow_y", "srow_z"), rows, strict=True):
        image.header[name] = row
    path = tmp_path / "scan.nii"
    image.header["pixdim"][1:4] = 1
    path.write_bytes(image.to_bytes())
    with pytest.raises(ValueError, match=r"scan\.nii.*its affine.*right angles.*Export"):
        nifti.load_image(path)


def turned(affine, **changes):
    """Copy an affine with some entries changed: row and column as letters, xx, xt ..."""
    affine = affine.copy()
    for entry, value in changes.items():
        affine["xyz".index(entry[0]), "xyzt".index(entry[1])] = value
    return affine


GRID = np.array([[-1, 0, 0, 40], [0, 2, 0, -20], [0, 0, 3, 5], [0, 0, 0, 1]], float)
IN_DOUBT = {
    "neither form": ({}, "neither qform nor sform tells left from right; set both"),
    "forms apart": (
        {"sform": GRID, "qform": turned(GRID, xt=41)},
        "in conflict.* 1 mm.*set both",
    ),
    "forms flipped": ({"sform": GRID, "qform": turned(GRID, xx=1)}, "in conflict.* 12 mm"),
    "forms of other sizes": (
        {"sform": turned(GRID, xx=-1.1), "qform": GRID, "pixdim": [-1, 1, 2, 3, 1, 1, 1, 1]},
        "voxel size.*1.1",
    ),
    "sheared": ({"sform": turned(GRID, xy=0.01)}, "right angles"),
    "infinite": ({"sform": turned(GRID, xx=np.inf)}, "right angles"),
    "origin infinite": ({"sform": turned(GRID, yt=np.inf)}, "right angles"),
    "origin a light year away": ({"sform": turned(GRID, yt=9.5e18)}, "right angles"),
    "origin NaN": ({"qform": turned(GRID, yt=np.nan)}, "right angles"),
    "quaternion": ({"qform": GRID, "quatern_b": 0.9, "quatern_c": 0.9}, "w2 should be positive"),
    "quaternion NaN": ({"qform": GRID, "quatern_b": np.nan}, ""),
    "pixdim 0": ({"qform": GRID, "pixdim": [1, 0, 2, 3, 1, 1, 1, 1]}, r"voxel size \[0.*correct"),
    "pixdim below 0": ({"qform": GRID, "pixdim": [1, 1, -2, 3, 1, 1, 1, 1]}, "voxel size.*-2"),
    "pixdim NaN": ({"sform": GRID, "pixdim": [1, 1, np.nan, 3, 1, 1, 1, 1]}, "voxel size.*nan"),
    "pixdim infinite": ({"qform": GRID, "pixdim": [1, 1, np.inf, 3, 1, 1, 1, 1]}, ""),
    "pixdim of another grid": ({"sform": GRID, "pixdim": [1] * 8}, "voxel size.*by pixdim.*by aff"),
    "unit 5": ({"sform": GRID, "xyzt_units": 5}, "xyzt_units': 5.*correct"),
}


@pytest.mark.parametrize("case", IN_DOUBT)
def test_a_header_that_leaves_a_doubt_is_refused(case, tmp_path):
    fields, words = IN_DOUBT[case]
    path = tmp_path / "scan.nii"
    with np.errstate(invalid="ignore"):
        path.write_bytes(raw_nifti(np.arange(7 * 120, dtype="i2").reshape(7, 20, 6), **fields))
    for kwargs in ({}, {"voxels": False}):
        with pytest.raises(ValueError, match=rf"scan\.nii: .*{words}.*or remove the case"):
            nifti.read(path, **kwargs)


@pytest.mark.parametrize("unit", [0, 1, 2, 3])
@pytest.mark.parametrize("form", ["sform", "qform"])
def test_one_form_is_enough_and_every_unit_becomes_mm(form, unit, tmp_path):
    per_mm = {0: 1, 1: 0.001, 2: 1, 3: 1000}[unit]
    stored = np.diag([per_mm, per_mm, per_mm, 1]) @ tilted_affine()
    array = np.arange(120, dtype=np.int16).reshape(SHAPE)
    path = tmp_path / "scan.nii"
    path.write_bytes(raw_nifti(array, **{form: stored}, xyzt_units=unit + 8))  # 8: seconds
    image, affine = nifti.load_image(path)
    np.testing.assert_array_equal(image, array)
    np.testing.assert_allclose(affine, tilted_affine(), atol=1e-4)


def test_the_third_size_of_a_2d_file_may_be_missing(affine, tmp_path):
    array = np.arange(20, dtype=np.int16).reshape(4, 5)
    path = tmp_path / "scan.nii"
    path.write_bytes(raw_nifti(array, sform=affine, pixdim=[1, 1, 2, 0, 0, 0, 0, 0]))
    image, loaded_affine = nifti.load_image(path)
    np.testing.assert_array_equal(image, array[..., None])
    np.testing.assert_array_equal(loaded_affine, affine)


ITK_STORAGE = [*product(["RAS", "LPS", "ASL", "PIR"], ["sform"], [2]), ("LIP", "qform", 2)]
ITK_STORAGE += [("RAS", "qform", 3), ("SLP", "sform", 3), ("LPS", "qform", 1), ("RAS", "both", 2)]


@pytest.mark.parametrize(("codes", "form", "unit"), ITK_STORAGE)
def test_itk_finds_a_saved_mask_on_the_grid_of_its_scan(codes, form, unit, truth, tmp_path):
    stored, affine = stored_as(codes, *truth)
    forms = {name: affine for name in ("sform", "qform") if form in (name, "both")}
    scan, mask = tmp_path / "scan.nii", tmp_path / "mask.nii.gz"
    scan.write_bytes(raw_nifti(stored, **forms, xyzt_units=unit))
    nifti.save_mask(mask, truth[0], scan)
    itk = [SimpleITK.ReadImage(path) for path in (scan, mask)]
    for read in ("GetSize", "GetOrigin", "GetSpacing", "GetDirection"):
        assert getattr(itk[0], read)() == getattr(itk[1], read)()
    np.testing.assert_array_equal(*map(SimpleITK.GetArrayFromImage, itk))
    per_mm = {1: 1000, 2: 1, 3: 0.001}[unit]
    sizes = nib.affines.voxel_sizes(affine) * per_mm
    np.testing.assert_allclose(itk[1].GetSpacing(), sizes, rtol=1e-5)
    # ITK counts towards the left and the back; NIfTI towards the right and the front.
    index = (1, 2, 3)
    place = (affine[:3] @ [*index, 1] * per_mm) * [-1, -1, 1]
    np.testing.assert_allclose(itk[1].TransformIndexToPhysicalPoint(index), place, atol=1e-3)
    headers = [nib.load(path).header for path in (scan, mask)]
    for field in ("dim", "pixdim", "xyzt_units", "qform_code", "sform_code", "srow_x", "quatern_b"):
        np.testing.assert_array_equal(headers[0][field], headers[1][field])


@pytest.mark.parametrize(
    ("qform_code", "sform_code", "best"), [(1, 1, "s"), (2, 4, "s"), (1, 0, "q"), (0, 3, "s")]
)
def test_a_saved_mask_keeps_both_forms_codes_and_units(
    qform_code, sform_code, best, affine, tmp_path
):
    moved = affine.copy()
    moved[0, 3] += 0 if qform_code and sform_code else 40  # a form without a code does not count
    image = nib.Nifti1Image(np.zeros(SHAPE, np.float32), None)
    image.header.set_qform(affine, qform_code)
    image.header.set_sform(moved, sform_code)
    image.header.set_xyzt_units("mm", "sec")
    image.header["cal_max"], image.header["intent_code"] = 900, 3
    (tmp_path / "scan.nii").write_bytes(image.to_bytes())
    scan = nib.load(tmp_path / "scan.nii")
    nifti.save_mask(tmp_path / "mask.nii.gz", np.ones(SHAPE, np.int64), tmp_path / "scan.nii")
    saved = nib.load(tmp_path / "mask.nii.gz")
    np.testing.assert_allclose(saved.affine, moved if best == "s" else affine, atol=1e-5)
    header = saved.header
    assert (int(header["qform_code"]), int(header["sform_code"])) == (qform_code, sform_code)
    for form in ("get_qform", "get_sform"):
        np.testing.assert_array_equal(getattr(header, form)(), getattr(scan.header, form)())
    assert header.get_xyzt_units() == ("mm", "sec")
    assert header["cal_max"] == 0  # the scan's display range would hide the labels
    assert header["intent_code"] == 0  # a mask is no map of t values


@pytest.mark.parametrize(
    "values", [(0, 255), (0, 256), (-1, 4), (-300, 400), (0, 40_000), (-(2**31), 2**31 - 1)]
)
def test_a_saved_mask_holds_integers_as_they_are(values, affine, tmp_path):
    scan = save(tmp_path / "scan.nii.gz", np.zeros(SHAPE, np.float32), affine)
    mask = np.random.default_rng(0).choice(values, SHAPE)
    mask.flat[:2] = values
    nifti.save_mask(tmp_path / "mask.nii.gz", mask, scan)
    saved = nib.load(tmp_path / "mask.nii.gz")
    assert saved.get_data_dtype().kind in "iu"
    assert (saved.dataobj.slope, saved.dataobj.inter) == (1, 0)
    np.testing.assert_array_equal(saved.dataobj.get_unscaled(), mask)
    np.testing.assert_array_equal(nifti.load_mask(tmp_path / "mask.nii.gz")[0], mask)


@pytest.mark.parametrize(
    ("mask", "words"),
    [
        (np.zeros((5, 4, 6), np.uint8), r"\(5, 4, 6\).*\(4, 5, 6\)"),
        (np.zeros((4, 5), np.uint8), r"\(4, 5\)"),
        (np.zeros((4, 5, 6, 1), np.uint8), r"\(4, 5, 6, 1\)"),
        (np.zeros(SHAPE, np.float32), "float32"),
        (np.zeros(SHAPE, bool), "bool"),
        (np.full(SHAPE, 2**40), ""),
    ],
)
def test_a_mask_that_cannot_be_saved_as_it_is_is_refused(mask, words, affine, tmp_path):
    scan = save(tmp_path / "scan.nii.gz", np.zeros(SHAPE, np.int16), affine)
    with pytest.raises(ValueError, match=rf"mask\.nii\.gz.*{words}"):
        nifti.save_mask(tmp_path / "mask.nii.gz", mask, scan)
    assert [path.name for path in tmp_path.iterdir()] == ["scan.nii.gz"]


@pytest.mark.parametrize("name", ["scan.nii.gz", "scan.nii", "scan.NII.GZ"])
def test_writing_twice_gives_the_same_bytes_that_nibabel_reads(name, truth, tmp_path):
    image = nib.Nifti1Image(*truth)
    for folder in ("a", "b"):
        nifti.write(tmp_path / folder / name, image)
    first = (tmp_path / "a" / name).read_bytes()
    assert first == (tmp_path / "b" / name).read_bytes()
    if name != "scan.nii":
        assert first[:2] == b"\x1f\x8b"
        assert first[4:8] == bytes(4)  # no time stamp
    np.testing.assert_array_equal(nib.load(tmp_path / "a" / name).get_fdata(), truth[0])


@pytest.mark.parametrize("endianness", ["<", ">"])
def test_nifti2_is_read_and_stays_nifti2(endianness, truth, tmp_path):
    header = nib.Nifti2Header(endianness=endianness)
    path = save(tmp_path / "scan.nii.gz", *truth, kind=nib.Nifti2Image, header=header)
    image, affine = nifti.load_image(path)
    np.testing.assert_array_equal(image, truth[0])
    np.testing.assert_allclose(affine, truth[1], atol=1e-9)
    nifti.save_mask(tmp_path / "mask.nii.gz", truth[0], path)
    saved = nib.load(tmp_path / "mask.nii.gz")
    assert isinstance(saved, nib.Nifti2Image)
    np.testing.assert_array_equal(np.asarray(saved.dataobj), truth[0])


@pytest.mark.parametrize("name", ["compressed.nii", "plain.nii.gz"])
def test_the_content_counts_and_not_the_suffix(name, truth, tmp_path):
    raw = nib.Nifti1Image(*truth).to_bytes()
    (tmp_path / name).write_bytes(gzip.compress(raw) if name == "compressed.nii" else raw)
    np.testing.assert_array_equal(nifti.load_image(tmp_path / name)[0], truth[0])


def test_a_saved_mask_carries_no_header_extension_of_the_scan(truth, tmp_path):
    image = nib.Nifti1Image(*truth)
    image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"Jane Doe"))
    nib.save(image, tmp_path / "scan.nii")
    nifti.save_mask(tmp_path / "mask.nii", truth[0], tmp_path / "scan.nii")
    assert b"Jane" in (tmp_path / "scan.nii").read_bytes()
    assert b"Jane" not in (tmp_path / "mask.nii").read_bytes()
    np.testing.assert_array_equal(nib.load(tmp_path / "mask.nii").get_fdata(), truth[0])


def numbers_for(shape):
    """Numbers up to 1, none alike, and each rounded to three decimals by Python's."""
    array = (
        np.random.default_rng(1).permutation(np.prod(shape)).reshape(shape) / np.prod(shape)
        - 0.0101
    )
    rounded = [float(round(Decimal(float(np.float32(x))), 3)) for x in array.flat]
    return array, np.float32(rounded).reshape(shape)


@pytest.mark.parametrize("codes", AXIS_CODES[::7])
@pytest.mark.parametrize("channels", [(), (3,)])
def test_a_saved_map_lies_on_the_grid_of_its_scan_rounded_to_three_decimals(
    codes, channels, truth, tmp_path
):
    stored, affine = stored_as(codes, *truth)
    scan = save(tmp_path / "scan.nii.gz", stored, affine)
    array, rounded = numbers_for((*SHAPE, *channels))
    nifti.save_map(tmp_path / "map.nii.gz", array, scan)
    saved = nib.load(tmp_path / "map.nii.gz")
    assert saved.get_data_dtype() == np.float32
    assert saved.shape == (*stored.shape, *channels)
    np.testing.assert_array_equal(saved.affine, nib.load(scan).affine)
    again, ras = nifti.load_image(tmp_path / "map.nii.gz")
    np.testing.assert_array_equal(again, rounded)
    np.testing.assert_allclose(ras, truth[1], atol=1e-5)
    for channel in np.ndindex(channels):
        expected, _ = stored_as(codes, rounded[(..., *channel)], truth[1])
        np.testing.assert_array_equal(np.asarray(saved.dataobj)[(..., *channel)], expected)


@pytest.mark.parametrize(
    ("factor", "step"), [(1e-3, 1e-6), (1e-12, 1e-15), (1, 1e-3), (1e4, 10), (0, 1e-3)]
)
def test_a_map_of_small_or_large_numbers_keeps_its_digits(factor, step, affine, tmp_path):
    scan = save(tmp_path / "scan.nii.gz", np.zeros(SHAPE, np.int16), affine)
    array = factor * numbers_for(SHAPE)[0]
    nifti.save_map(tmp_path / "map.nii.gz", array, scan)
    again, _ = nifti.load_image(tmp_path / "map.nii.gz")
    np.testing.assert_allclose(again, array, rtol=1e-6, atol=0.501 * step)
    assert len(np.unique(again)) == (120 if factor else 1)


@pytest.mark.parametrize("codes", ["RAS", "PIR", "LPS"])
def test_itk_finds_a_saved_map_on_the_grid_of_its_scan(codes, truth, tmp_path):
    scan = save(tmp_path / "scan.nii.gz", *stored_as(codes, *truth))
    array, rounded = numbers_for((*SHAPE, 2))
    nifti.save_map(tmp_path / "map.nii.gz", array, scan)
    itk = SimpleITK.ReadImage(scan), SimpleITK.ReadImage(tmp_path / "map.nii.gz")
    assert itk[1].GetPixelIDTypeAsString() == "32-bit float"
    for k in range(2):
        for read in ("GetSize", "GetOrigin", "GetSpacing", "GetDirection"):
            assert getattr(itk[1][..., k], read)() == getattr(itk[0], read)()
        expected, _ = stored_as(codes, rounded[..., k], truth[1])
        np.testing.assert_array_equal(SimpleITK.GetArrayFromImage(itk[1][..., k]), expected.T)


@pytest.mark.parametrize("stored", [(4, 5), (4, 5, 1), (4, 5, 6, 2), (4, 5, 6, 1)])
@pytest.mark.parametrize("channels", [(), (3,)])
def test_a_map_is_saved_on_scans_that_are_not_3d(stored, channels, affine, tmp_path):
    scan = save(tmp_path / "scan.nii.gz", np.zeros(stored, np.int16), affine)
    array, rounded = numbers_for((*(*stored, 1)[:3], *channels))
    nifti.save_map(tmp_path / "map.nii.gz", array, scan)
    assert nib.load(tmp_path / "map.nii.gz").shape == (array.shape if channels else stored[:3])
    again, again_affine = nifti.load_image(tmp_path / "map.nii.gz")
    np.testing.assert_array_equal(again, rounded)
    np.testing.assert_array_equal(again_affine, affine)


@pytest.mark.parametrize("dtype", [bool, np.uint8, np.float16, np.float64])
@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
def test_a_map_is_float32_whatever_it_was_and_the_scan_is(dtype, kind, affine, tmp_path):
    big_endian = kind.header_class(endianness=">")
    image = kind(np.zeros(SHAPE, np.int16), affine, big_endian)
    image.header.set_slope_inter(0.5, -3)
    image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"Jane Doe"))
    image.header["cal_max"], image.header["descrip"] = 900, b"Jane Doe"
    (tmp_path / "scan.nii").write_bytes(image.to_bytes())
    array = (np.arange(120).reshape(SHAPE) % 2).astype(dtype)
    nifti.save_map(tmp_path / "map.nii", array, tmp_path / "scan.nii")
    saved = nib.load(tmp_path / "map.nii")
    assert isinstance(saved, kind)
    assert saved.get_data_dtype().newbyteorder("=") == np.float32
    assert (saved.dataobj.slope, saved.dataobj.inter) == (1, 0)
    assert saved.header["cal_max"] == 0  # the scan's display range would make it black
    np.testing.assert_array_equal(saved.get_fdata(), array.astype(float))
    assert b"Jane" not in (tmp_path / "map.nii").read_bytes()


@pytest.mark.parametrize("shape", [(5, 4, 6), (4, 5), (4, 5, 6, 1, 1), (3, 5, 6, 2), (2, 4, 5, 6)])
def test_a_map_on_another_grid_is_refused(shape, affine, tmp_path):
    scan = save(tmp_path / "scan.nii.gz", np.zeros(SHAPE, np.int16), affine)
    with pytest.raises(ValueError, match=rf"map\.nii\.gz: shape {re.escape(str(shape))}.*scan"):
        nifti.save_map(tmp_path / "map.nii.gz", np.zeros(shape), scan)
    assert [path.name for path in tmp_path.iterdir()] == ["scan.nii.gz"]


def test_a_map_turned_against_a_scan_of_other_axes_is_refused(truth, tmp_path):
    scan = save(tmp_path / "scan.nii.gz", *stored_as("SAR", *truth))  # stored as 6 x 5 x 4
    with pytest.raises(ValueError, match=r"shape \(6, 5, 4\) is not the RAS\+ shape \(4, 5, 6\)"):
        nifti.save_map(tmp_path / "map.nii.gz", np.zeros((6, 5, 4)), scan)


def with_extension(array, affine, size):
    raw = raw_nifti(array, sform=affine, vox_offset=352 + 32)
    extension = np.array([size, 6], "<i4").tobytes() + b"Jane Doe".ljust(24, b"\0")
    return raw[:348] + b"\1\0\0\0" + extension + raw[352:]


@pytest.mark.parametrize("size", [32, 0, -1, 8, 9, 48, 2**31 - 1, -(2**31)])
def test_an_extension_is_passed_over_whatever_size_it_claims(size, truth, tmp_path):
    (tmp_path / "scan.nii").write_bytes(with_extension(*truth, size))
    image, affine = nifti.load_image(tmp_path / "scan.nii")
    np.testing.assert_array_equal(image, truth[0])
    np.testing.assert_allclose(affine, truth[1], atol=1e-5)
    nifti.save_mask(tmp_path / "mask.nii", truth[0], tmp_path / "scan.nii")
    assert (tmp_path / "mask.nii").stat().st_size == 352 + 120  # of one byte each


@pytest.mark.parametrize("row", [(1e200, 0, 0, 0), (1, 0, 0, 1e308)])
def test_a_grid_beyond_all_distances_is_refused_without_a_warning(row, affine, truth, tmp_path):
    raw = raw_nifti(truth[0], sform=affine, kind=nib.Nifti2Header, srow_x=row, xyzt_units=1)
    (tmp_path / "scan.nii").write_bytes(raw)
    with pytest.raises(ValueError, match=r"scan\.nii: .*right angles.*or remove the case"):
        nifti.load_image(tmp_path / "scan.nii")


# Any bytes at all: sound or refused, never an error of another kind, a warning or much memory.

TYPES = ["u1", "i1", "i2", "u2", "i4", "u4", "i8", "u8", "f4", "f8", "c8", "c16"]
TYPES += [[(c, "u1") for c in "RGB"], [(c, "u1") for c in "RGBA"]]
WHOLE = [*range(-2, 18), 64, 128, 255, 256, 348, 352, 540, 544, 9999, 2**15, 2**31, 2**40, 2**62]
REAL = [0, 1, -1, 0.5, 1e-3, 1e3, 1e-30, 1e30, 352, 353, 368, 544, np.nan, np.inf, -np.inf]
# Flags of a gzip member: text, check sum, extra field, name, comment; 0 is none.
GZIP_FIELDS = {2: b"\1\2", 4: b"\3\0abc", 8: b"name\0", 16: b"a comment\0"}


def values_of(dtype):
    if dtype.kind == "S":
        return st.binary(max_size=dtype.itemsize)
    if dtype.kind == "f":
        ends = [np.finfo(dtype).max, np.finfo(dtype).tiny, np.finfo(dtype).smallest_subnormal]
        return st.sampled_from([*REAL, *map(float, ends)]) | st.floats(width=8 * dtype.itemsize)
    low, high = np.iinfo(dtype).min, np.iinfo(dtype).max
    some = [value for value in WHOLE if low <= value <= high]
    return st.sampled_from([*some, int(low), int(high)]) | st.integers(low, high)


@st.composite
def headers(draw):
    header = draw(st.sampled_from([nib.Nifti1Header, nib.Nifti2Header]))(
        endianness=draw(st.sampled_from("<>"))
    )
    header.set_data_dtype(np.dtype(draw(st.sampled_from(TYPES))))
    header.set_data_shape(draw(st.lists(st.integers(1, 4), min_size=2, max_size=5)))
    affine = draw(st.sampled_from([GRID, tilted_affine(), np.diag([1e-3, 1e-3, 5, 1])]))
    header.set_zooms((*nib.affines.voxel_sizes(affine), 1, 1)[: len(header.get_data_shape())])
    for set_form in draw(
        st.sampled_from(
            [[header.set_sform], [header.set_qform], [header.set_sform, header.set_qform], []]
        )
    ):
        set_form(affine, draw(st.integers(1, 4)))
    header["xyzt_units"] = draw(st.sampled_from([0, 1, 2, 3, 10]))
    header["scl_slope"], header["scl_inter"] = draw(st.sampled_from([(1, 0), (0, 0), (0.5, -3)]))
    return header


@st.composite
def nifti_files(draw):
    header = draw(headers())
    extensions = draw(
        st.lists(st.tuples(st.none() | values_of(np.dtype("i4")), st.integers(0, 50)), max_size=2)
    )
    order, tail = header.endianness, b""
    for size, code in extensions:
        text = draw(st.binary(max_size=24)).ljust(24, b"\0")
        tail += np.array([len(text) + 8 if size is None else size, code], order + "i4").tobytes()
        tail += text
    flag = draw(st.binary(min_size=4, max_size=4)) if draw(st.booleans()) else b"\1\0\0\0"
    tail = (flag if tail else bytes(4)) + tail
    header["vox_offset"] = len(header.binaryblock) + len(tail)
    size = math.prod(header.get_data_shape()) * header.get_data_dtype().itemsize
    voxels = draw(
        st.sampled_from([bytes(size), b"\1".ljust(size, b"\0"), b"\x01\x7f" * size])
        | st.integers(0, 2**32).map(lambda seed: np.random.default_rng(seed).bytes(size))
    )[:size]
    names = draw(st.lists(st.sampled_from(header.keys()), max_size=3))
    fields = header.structarr
    for name in names:
        at = draw(st.integers(0, max(fields[name].size - 1, 0)))
        place = fields[name].reshape(-1)[at : at + 1] if fields[name].ndim else fields[name]
        place[...] = draw(values_of(fields[name].dtype))
    return header.binaryblock + tail + voxels


@st.composite
def damaged(draw, content, most):
    for _ in range(draw(st.integers(0, most))):
        start, end = sorted(draw(st.integers(0, len(content))) for _ in range(2))
        kind = draw(st.sampled_from(["flip", "delete", "insert", "cut", "splice"]))
        if kind == "flip" and start < len(content):
            flipped = bytes([content[start] ^ 1 << draw(st.integers(0, 7))])
            content = content[:start] + flipped + content[start + 1 :]
        elif kind == "delete":
            content = content[:start] + content[end:]
        elif kind == "insert":
            content = content[:start] + draw(st.binary(max_size=20)) + content[start:]
        elif kind == "cut":
            content = content[:end]
        elif kind == "splice":
            content = content[:end] + content[start:]
    return content


@st.composite
def packed(draw, content):
    cut = draw(st.integers(0, len(content)))
    stream = b""
    for member in draw(st.sampled_from([[content], [content[:cut], content[cut:]]])):
        chosen = draw(st.sets(st.sampled_from([*GZIP_FIELDS]), max_size=2))
        head = bytearray(gzip.compress(member, draw(st.sampled_from([0, 1, 9])), mtime=0))
        head[3] = sum(chosen)
        fields = b"".join(GZIP_FIELDS[flag] for flag in (4, 8, 16, 2) if flag in chosen)
        stream += bytes(head[:10]) + fields + bytes(head[10:])
    return stream + draw(st.sampled_from([b"", b"", bytes(3), bytes(600), b"\x1f\x8b", b"trash"]))


@st.composite
def any_bytes(draw):
    if draw(st.integers(0, 9)) == 0:
        return draw(st.sampled_from([b"", b"\x1f\x8b", b"\x1f\x8b\x08\x00"])) + draw(st.binary())
    content = draw(nifti_files())
    content = draw(damaged(content, draw(st.sampled_from([0, 0, 0, 3]))))
    if draw(st.booleans()):
        return content
    return draw(damaged(draw(packed(content)), draw(st.sampled_from([0, 0, 0, 3]))))


def sound_or_refused(path, reader, *args, **kwargs):
    """What the reader gives, or None if it refuses the file as it promises to."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        result, refusal = None, None
        try:
            result = reader(*args, **kwargs)
        except ValueError as error:
            refusal = error
    assert [str(warning.message) for warning in caught] == []
    assert type(refusal) in (type(None), ValueError)
    assert refusal is None or str(refusal).startswith(f"{path}: ")
    assert not isinstance(getattr(refusal, "__cause__", None), MemoryError)
    return result


def promised_shape(content):
    """Shape by the header's own numbers, in either order of bytes."""
    content = gzip.decompress(content) if content[:2] == b"\x1f\x8b" else content
    start, size = (16, 8) if content[4:7] == b"n+2" else (40, 2)
    numbers = {o: np.frombuffer(content, f"{o}i{size}", 8, start).tolist() for o in "<>"}
    return [tuple(dim[1 : 1 + dim[0]]) for dim in numbers.values()]


def look_at(content, path):
    path.write_bytes(content)
    image = sound_or_refused(path, nifti.read, path)
    scan = sound_or_refused(path, nifti.load_image, path)
    mask = sound_or_refused(path, nifti.load_mask, path)
    if image is None:
        assert scan is None
        assert mask is None
    else:
        assert image.shape in promised_shape(content)
        assert isinstance(image.dataobj, np.ndarray)
        assert image.shape == image.dataobj.shape
    for array, affine in filter(None, (scan, mask)):
        assert array.ndim in (3, 4)
        assert array.size == math.prod(image.shape)
        assert sorted(array.shape[:3]) == sorted((*image.shape, 1, 1)[:3])
        assert affine.dtype == np.float64
        assert np.isfinite(affine).all()
        assert np.linalg.det(affine) != 0
        assert nib.aff2axcodes(affine) == ("R", "A", "S")
    if scan is not None:
        assert scan[0].dtype == np.float32
    if mask is not None:
        assert mask[0].dtype == np.int32
        assert mask[0].ndim == 3
    (row,) = sound_or_refused(path, check_cases, [Case("a", path, path)]).to_dict("records")
    assert row["problem"]  # a scan is not its own mask
    assert isinstance(row["shape"], tuple) == (scan is not None)
    assert tracemalloc.get_traced_memory()[1] < 2**24  # files are at most a few kB
    tracemalloc.stop()


@pytest.mark.parametrize(
    "examples", [150, pytest.param(3000, marks=pytest.mark.long)], ids=["some", "many"]
)
def test_any_bytes_are_read_soundly_or_refused_by_name(examples, tmp_path):
    @settings(max_examples=examples, derandomize=True, database=None, deadline=None)
    @given(any_bytes())
    def look_at_one(content):
        tracemalloc.start()
        look_at(content, tmp_path / "scan.nii")

    look_at_one()


def test_a_scan_is_not_replaced_by_what_was_made_of_it(tmp_path):
    path = tmp_path / "scan.nii.gz"
    nib.save(nib.Nifti1Image(np.ones((4, 4, 4), np.int16), np.eye(4)), path)
    before = path.read_bytes()
    same = tmp_path / "folder" / ".." / "scan.nii.gz"
    (tmp_path / "folder").mkdir()
    with pytest.raises(ValueError, match="is the scan itself, which is never replaced"):
        nifti.save_mask(same, np.zeros((4, 4, 4), int), like=path)
    with pytest.raises(ValueError, match="is the scan itself, which is never replaced"):
        nifti.save_map(path, np.zeros((4, 4, 4)), like=path)
    assert path.read_bytes() == before


def test_a_mask_at_45_degrees_is_turned_as_its_scan_whatever_the_last_digits(tmp_path):
    generator, cosine = np.random.default_rng(0), np.sqrt(0.5)
    turned = np.array([[1, 0, 0], [0, cosine, -cosine], [0, cosine, cosine]]) * (1.5, 2, 2)
    scan = np.arange(4 * 5 * 6, dtype=np.int16).reshape(4, 5, 6)
    for number in range(20):
        paths = [tmp_path / f"{name}{number}.nii" for name in ("scan", "mask")]
        for path in paths:
            affine = np.eye(4)
            affine[:3, :3] = turned + generator.normal(0, 1e-7, (3, 3))
            nib.save(nib.Nifti1Image(scan, affine), path)
        image, mask = nifti.load_image(paths[0]), nifti.load_mask(paths[1])
        np.testing.assert_array_equal(image[0], mask[0])
        assert nifti.describe_grid_mismatch(scan.shape, image[1], scan.shape, mask[1]) == ""
        nifti.save_mask(tmp_path / "back.nii", mask[0], paths[0])
        np.testing.assert_array_equal(nib.load(tmp_path / "back.nii").get_fdata(), scan)
