import io
import itertools
import os
import tarfile
import time

import grain
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

from experiments import tasks
from experiments.common.errors import UserError
from experiments.configs import digits_zoo, resnet_digits
from experiments.data import decoding, image_files, images, stores, stream
from experiments.training.job import Job

CLASSES = ("cat", "dog", "eel")


def jpeg(seed, size=(20, 16), mode="RGB", kind="JPEG"):
    """Smooth random colours, so that the encoding changes little."""
    pixels = np.random.default_rng(seed).integers(0, 256, (2, 2, 3), np.uint8)
    image = Image.fromarray(pixels).resize(size, Image.Resampling.BILINEAR)
    buffer = io.BytesIO()
    image.convert(mode).save(
        buffer, kind, **({"quality": 95} if kind == "JPEG" else {})
    )
    return buffer.getvalue()


def contents(train=4, validation=2, held_out="val"):
    """Paths and bytes of a small set."""
    counts = {"train": train, held_out: validation}
    return {
        f"{split}/{label}/{number}.{'JPEG' if number else 'png'}": jpeg(
            [len(split), index, number], kind="JPEG" if number else "PNG"
        )
        for split, count in counts.items()
        for index, label in enumerate(CLASSES)
        for number in range(count)
    }


def write_tree(folder, files):
    for name, data in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return str(folder)


def write_tar(path, files, mode="w"):
    with tarfile.open(path, mode) as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return str(path)


def data_config(path, **changes):
    config = resnet_digits.get_config("smoke")
    config.data.update(path=path, **{"image_size": 16, **changes})
    return config


def load(path, **changes):
    return images.load(data_config(path, **changes).data)


# Finding images.


def test_tree_and_tars_are_the_same_data(tmp_path):
    files = contents()
    paths = [
        write_tree(tmp_path / "tree", files),
        write_tar(tmp_path / "plain", dict(reversed(files.items()))),
        write_tar(tmp_path / "dots.tar", {f"./{n}": files[n] for n in files}),
        write_tar(tmp_path / "packed.tgz", files, "w:gz"),
        write_tar(tmp_path / "packed.tar.xz", files, "w:xz"),
    ]
    all_found = [image_files.find(path) for path in paths]
    for found in all_found:
        assert found.classes == list(CLASSES)
        assert found.train.names == sorted(n for n in files if n.startswith("train"))
        assert found.train.labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4
        assert found.validation.labels.tolist() == [0, 0, 1, 1, 2, 2]
        for name, data in files.items():
            assert found.store.sizes[name] == len(data)
            assert found.store.read(name) == data
    for with_bytes in (False, True):
        assert len({found.sha256(with_bytes) for found in all_found}) == 1
    assert all_found[0].sha256(False) != all_found[0].sha256(True)


@pytest.mark.parametrize("pack", [write_tree, write_tar])
def test_names_may_be_any_bytes(tmp_path, pack):
    files = contents()
    files[os.fsdecode(b"train/cat/caf\xe9.png")] = jpeg(0, kind="PNG")
    found = load(pack(tmp_path / "images", files))
    assert len(found.train.labels) == 13


def test_hash_sees_names_and_sizes_and_where_asked_bytes(tmp_path):
    files = contents()
    name = "train/cat/1.JPEG"

    def hashes(folder, changed):
        found = image_files.find(write_tree(tmp_path / folder, changed))
        return found.sha256(False), found.sha256(True)

    plain = hashes("plain", files)
    flipped = files[name][:-1] + bytes([files[name][-1] ^ 1])
    by_name, by_bytes = hashes("flipped", {**files, name: flipped})
    assert by_name == plain[0]
    assert by_bytes != plain[1]
    assert hashes("longer", {**files, name: files[name] + b" "})[0] != plain[0]
    renamed = {n.replace("cat/1", "cat/7"): data for n, data in files.items()}
    assert hashes("renamed", renamed)[0] != plain[0]


@pytest.mark.parametrize("pack", [write_tree, write_tar])
def test_other_files_are_left_alone(tmp_path, pack):
    others = ("train/cat/._1.jpg", "train/cat/notes.txt", "train/x.jpg", "LICENSE")
    others += ("extra/cat/1.jpg", "train/cat/more/1.jpg")
    found = image_files.find(
        pack(tmp_path / "data", {**contents(), **dict.fromkeys(others, b"?")})
    )
    assert sorted(found.store.sizes) == sorted(contents())


@pytest.mark.parametrize("held_out", ["validation", "val", "test"])
def test_validation_has_three_names(tmp_path, held_out):
    files = contents(held_out=held_out)
    files |= {n.replace("train", "test"): data for n, data in files.items()}
    found = image_files.find(write_tar(tmp_path / "t.tar", files))
    assert {name.split("/")[0] for name in found.validation.names} == {held_out}


def without(files, *prefixes):
    return {n: data for n, data in files.items() if not n.startswith(prefixes)}


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "no images; train/<class>"),
        ({"cat/1.jpg": b""}, "no images; train/<class>"),
        (without(contents(), "val"), "images for train only"),
        (without(contents(), "train"), "images for val only"),
        (without(contents(), "val/dog"), "1 classes have no image in val/, dog among"),
        (without(contents(), "train/cat", "train/eel"), "2 classes .* train/, cat amo"),
        (without(contents(), *(f"{s}/{c}" for s in ("train", "val") for c in "cd")),
         "one class, eel"),
    ],
)  # fmt: skip
def test_trees_without_two_splits_of_the_same_classes_are_refused(
    tmp_path, files, message
):
    (tmp_path / "data").mkdir()
    path = write_tree(tmp_path / "data", files)
    with pytest.raises(UserError, match=message) as error:
        image_files.find(path)
    assert f"config.data.path={path}: " in str(error.value)
    assert "\n" not in str(error.value)


def test_what_is_no_tar_is_refused(tmp_path):
    with pytest.raises(UserError, match="nowhere: No such file or directory; a folder"):
        image_files.find(str(tmp_path / "nowhere"))
    text = tmp_path / "text"
    text.write_bytes(b"no tar" * 500)
    with pytest.raises(UserError, match=r"text: .*; a folder, or a whole tar, with"):
        image_files.find(str(text))


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:bz2", "w:xz"])
def test_cut_tars_are_refused(tmp_path, mode):
    path = tmp_path / "t.tar"
    write_tar(path, contents(), mode)
    path.write_bytes(path.read_bytes()[:-9000] if mode == "w" else
                     path.read_bytes()[:2000])  # fmt: skip
    with pytest.raises(UserError, match="whole tar, with"):
        image_files.find(str(path))


@pytest.mark.parametrize("mode", ["w", "w:gz"])
def test_links_in_tars_are_refused(tmp_path, mode):
    path = tmp_path / "t.tar"
    with tarfile.open(path, mode) as archive:
        member = tarfile.TarInfo("train/cat/1.jpg")
        member.type, member.linkname = tarfile.SYMTYPE, "2.jpg"
        archive.addfile(member)
    with pytest.raises(UserError, match=r"train/cat/1\.jpg is a link"):
        image_files.find(str(path))


def test_large_compressed_tars_are_refused(tmp_path, monkeypatch):
    files = contents()
    plain = write_tar(tmp_path / "plain.tar", files)
    path = write_tar(tmp_path / "t.tar.gz", files, "w:gz")
    # It is read by whole pieces, and the last one is empty.
    total = os.path.getsize(plain) + stores.PIECE
    monkeypatch.setattr(stores, "LARGEST_UNPACKED", total)
    image_files.find(path)
    monkeypatch.setattr(stores, "LARGEST_UNPACKED", total - 1)
    with pytest.raises(UserError, match="decompress it first"):
        image_files.find(path)
    image_files.find(plain)


def test_files_that_vanish_or_shrink_are_named(tmp_path):
    files = contents()
    name = "train/dog/2.JPEG"
    tree = image_files.find(write_tree(tmp_path / "tree", files))
    (tmp_path / "tree" / name).unlink()
    with pytest.raises(UserError, match=r"dog/2\.JPEG: No such file"):
        tree.store.read(name)
    tar = image_files.find(write_tar(tmp_path / "t.tar", files))
    with (tmp_path / "t.tar").open("r+b") as file:
        file.truncate(1000)
    with pytest.raises(UserError, match=r"dog/2\.JPEG has 0 bytes instead of"):
        tar.store.read(name)


# Decoding and views.


@pytest.mark.parametrize(
    ("mode", "kind"),
    [("RGB", "PNG"), ("L", "JPEG"), ("CMYK", "JPEG"), ("P", "PNG"), ("RGBA", "PNG")],
)
def test_every_image_becomes_red_green_and_blue(mode, kind):
    image = decoding.decode(jpeg(0, mode=mode, kind=kind), "any")
    assert (image.mode, image.size) == ("RGB", (20, 16))


@pytest.mark.parametrize("augment", ["none", "resized_crop"])
@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda data: data[:-60], r"not a whole JPEG or PNG image \("),
        (lambda data: b"junk", "not a JPEG or PNG image"),
    ],
)
def test_corrupt_images_are_named(tmp_path, augment, damage, reason):
    files = contents()
    files["train/eel/3.JPEG"] = damage(files["train/eel/3.JPEG"])
    path = write_tree(tmp_path, files)

    def read_all():
        data = load(path, augment=augment)  # refused here if it is held in memory
        return list(itertools.islice(images.train_batches(data.train, 4, 0, 0), 3))

    with pytest.raises(UserError, match=rf"^train/eel/3\.JPEG: {reason}") as e:
        read_all()
    assert "\n" not in str(e.value)


def gradient(width, height):
    """An image whose red is its column and whose green its row."""
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[..., 0] = np.arange(width)
    pixels[..., 1] = np.arange(height)[:, None]
    return Image.fromarray(pixels)


def test_centre_of_an_image_of_the_right_size_is_itself():
    np.testing.assert_array_equal(
        images.centre(gradient(9, 9), 9, 9), np.asarray(gradient(9, 9))
    )


@pytest.mark.parametrize(("width", "height"), [(160, 64), (64, 160), (64, 64)])
def test_centre_cuts_off_what_the_short_side_says(width, height):
    found = images.centre(gradient(width, height), 28, 32).astype(float)
    # 64 x 28 / 32 = 56 columns and rows around the middle, two of them for each pixel.
    for channel, (length, axis) in enumerate(((width, 1), (height, 0))):
        first = length / 2 - 28
        expected = first + 0.5 + 2 * np.arange(28)
        values = found[..., channel].mean(axis=1 - axis)
        # The filter reaches beyond two pixels at the ends, and whole numbers result.
        np.testing.assert_allclose(values, expected, atol=0.8)


def test_random_crops_have_every_area_and_shape(monkeypatch):
    monkeypatch.setattr(images, "_resized", lambda image, size, box: box)
    image, rng = gradient(200, 150), np.random.default_rng(0)
    boxes = [images.resized_crop(image, 8, rng) for _ in range(2000)]
    left, top, right, bottom = np.array(boxes).T
    width, height = right - left, bottom - top
    assert min(left.min(), top.min()) == 0
    assert (right.max(), bottom.max()) == (200, 150)
    area, ratio = width * height / (200 * 150), width / height
    # Sides are rounded to whole pixels, of which the smallest crop has about 43.
    assert 0.075 < area.min() < 0.1
    assert area.max() > 0.9
    assert 0.73 < ratio.min() < 0.77
    assert 1.29 < ratio.max() < 1.37
    # 2,000 uniform numbers, but large crops of extreme shape do not fit.
    assert 0.4 < area.mean() < 0.54


def test_random_crop_is_the_cut_and_scaled_part(monkeypatch):
    image = gradient(200, 150)
    found = images.resized_crop(image, 8, np.random.default_rng(3)).astype(float)
    monkeypatch.setattr(images, "_resized", lambda image, size, box: box)
    left, top, right, bottom = images.resized_crop(image, 8, np.random.default_rng(3))
    columns = left + (right - left) * (np.arange(8) + 0.5) / 8 - 0.5
    rows = top + (bottom - top) * (np.arange(8) + 0.5) / 8 - 0.5
    # Whole numbers, and at the ends half of the filter is cut off.
    width = max(right - left, bottom - top) / 8
    np.testing.assert_allclose(found[..., 0].mean(0), columns, atol=1 + width / 8)
    np.testing.assert_allclose(found[..., 1].mean(1), rows, atol=1 + width / 8)


def test_crop_of_a_narrow_image_is_its_middle():
    image = gradient(200, 4)
    found = images.resized_crop(image, 4, np.random.default_rng(0))
    np.testing.assert_array_equal(found, images.centre(image, 4, 4))


def test_shift_is_a_padded_random_crop():
    pixels = np.random.default_rng(0).integers(1, 256, (16, 16, 3), np.uint8)
    padded = np.pad(pixels, ((2, 2), (2, 2), (0, 0)))
    crops = {
        padded[i : i + 16, j : j + 16].tobytes() for i in range(5) for j in range(5)
    }
    rng = np.random.default_rng(1)
    found = {images.shift(pixels, rng).tobytes() for _ in range(400)}
    assert found == crops  # each is missed with a chance of (24 / 25) ** 400 = 8e-8


def test_half_of_the_images_are_flipped(tmp_path):
    data = load(write_tree(tmp_path, contents()), flip=True, augment="none")
    rng = np.random.default_rng(0)
    plain = data.train.view(2)
    flips = 0
    for _ in range(200):
        found = data.train.random_view(2, rng)
        flipped = np.array_equal(found, plain[:, ::-1])
        assert flipped or np.array_equal(found, plain)
        flips += flipped
    assert abs(flips - 100) < 4 * 200**0.5 / 2  # 4 standard deviations


def test_images_in_memory_and_on_disk_are_the_same(tmp_path, monkeypatch):
    path = write_tar(tmp_path / "t.tar", contents())
    held = load(path, augment="shift", flip=True)
    monkeypatch.setattr(images, "LARGEST_DECODED", 0)
    lazy = load(path, augment="shift", flip=True)
    assert (held.in_memory, lazy.in_memory) == (True, False)
    found = image_files.find(path)
    assert held.sha256 == found.sha256(with_bytes=True)
    assert lazy.sha256 == found.sha256(with_bytes=False)
    batches = [next(images.train_batches(d.train, 12, 0, 5)) for d in (held, lazy)]
    assert_equal_batches(*batches)
    batches = [next(images.eval_batches(d.validation, 6)) for d in (held, lazy)]
    assert_equal_batches(*batches)


def test_limit_of_memory_counts_decoded_bytes(tmp_path, monkeypatch):
    path = write_tree(tmp_path, contents())
    monkeypatch.setattr(images, "LARGEST_DECODED", 18 * 16 * 16 * 3)
    assert load(path).in_memory
    assert not load(path, image_size=17).in_memory


# Batches.


def assert_equal_batches(first, second):
    assert first.keys() == second.keys()
    for name, value in first.items():
        np.testing.assert_array_equal(value, second[name], err_msg=name)


def digit_data(**changes):
    config = resnet_digits.get_config("smoke")
    config.data.update(changes)
    return images.load(config.data)


def test_batch_depends_on_seed_and_number_alone():
    split = digit_data(augment="shift").train
    from_start = itertools.islice(images.train_batches(split, 40, 0, 0), 45)
    batches = list(from_start)  # into the second epoch of 1,438
    again = images.train_batches(split, 40, 0, 37)
    for number in range(37, 45):
        assert_equal_batches(batches[number], next(again))
    other = next(images.train_batches(split, 40, 1, 0))
    assert not np.array_equal(other["labels"], batches[0]["labels"])


def test_microbatches_cut_the_same_stream():
    split = digit_data(augment="shift").train
    wide = next(images.train_batches(split, 40, 0, 3))
    narrow = list(itertools.islice(images.train_batches(split, 20, 0, 6), 2))
    joined = {name: np.concatenate([b[name] for b in narrow]) for name in wide}
    assert_equal_batches(wide, joined)


def test_each_epoch_has_every_image_once_in_its_own_order_and_views():
    split = digit_data().train
    numbers = np.arange(len(split.labels), dtype=np.int32)
    numbered = split._replace(labels=numbers)
    batches = itertools.islice(images.train_batches(numbered, 719, 0, 0), 4)
    order = [batch["labels"] for batch in batches]
    first, second = np.concatenate(order[:2]), np.concatenate(order[2:])
    assert (np.sort(first) == numbers).all()
    assert (np.sort(second) == numbers).all()
    assert (first != second).any()
    moved = split._replace(random_view=lambda index, rng: rng.integers(2**40))
    batches = itertools.islice(images.train_batches(moved, 719, 0, 0), 4)
    assert len(np.unique(np.concatenate([b["images"] for b in batches]))) == 4 * 719


@pytest.mark.parametrize("processes", [2, 4])
def test_processes_share_the_rows_of_each_batch(monkeypatch, processes):
    seen = []

    def example(index):
        seen.append(index)
        return {"x": np.full(2, index)}

    examples = grain.MapDataset.range(240).map(example)
    expected = list(stream.batches(examples, 48, 2))
    assert [batch["x"][:, 0].tolist() for batch in expected] == [
        list(range(start, start + 48)) for start in (96, 144, 192)
    ]
    monkeypatch.setattr(jax, "process_count", lambda: processes)
    parts, computed = [], []
    for process in range(processes):
        monkeypatch.setattr(jax, "process_index", lambda process=process: process)
        seen.clear()
        parts.append(list(stream.batches(examples, 48, 2)))
        assert len(seen) == 3 * 48 // processes  # none of the others' rows
        computed += seen
        for whole, own in zip(expected, parts[-1], strict=True):
            assert_equal_batches(stream.own_rows(whole), own)
    assert sorted(computed) == list(range(96, 240))
    for whole, *own in zip(expected, *parts, strict=True):
        assert_equal_batches(whole, {"x": np.concatenate([part["x"] for part in own])})


def test_rows_that_processes_cannot_share_are_refused(monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 3)
    examples = grain.MapDataset.range(80)
    with pytest.raises(UserError, match=r"16 rows .* divisible by 3, the number of"):
        stream.batches(examples, 16, 0)


def test_batches_make_use_of_their_function():
    examples = grain.MapDataset.range(40)
    batches = stream.batches(examples, 20, 0, lambda rows: {"x": np.array(rows) + 1})
    assert next(batches)["x"].tolist() == list(range(1, 21))


def test_read_ahead_is_limited(monkeypatch):
    seen = []
    monkeypatch.setattr(stream.os, "cpu_count", lambda: 2)
    examples = grain.MapDataset.range(10_000).map(lambda i: seen.append(i) or {"x": i})
    batches = stream.batches(examples, 40, 0)
    next(batches)
    for _ in range(500):  # at most 5 s, and far less if nobody else is at work
        if len(seen) >= 3 * 40:  # this microbatch and two more
            break
        time.sleep(0.01)
    time.sleep(0.1)  # in which thousands of such rows could be read
    assert len(seen) == 3 * 40


def test_evaluation_has_every_image_once_and_fillers_without_weight():
    split = digit_data(augment="shift", flip=True).validation
    batches = list(images.eval_batches(split, 50))
    assert [batch["images"].shape for batch in batches] == [(50, 8, 8, 1)] * 8
    joined = {name: np.concatenate([b[name] for b in batches]) for name in batches[0]}
    assert joined["weights"].tolist() == [1] * 359 + [0] * 41
    np.testing.assert_array_equal(joined["labels"][:359], split.labels)
    for index in (0, 100, 358):
        np.testing.assert_array_equal(joined["images"][index], split.view(index))


# The task.


def build(config, tmp_path):
    return tasks.load(config).build(tmp_path)


def linear(**changes):
    """The zoo's config with a model of one layer."""
    config = digits_zoo.get_config("smoke")
    config.model.num_layers = 0
    config.update(changes)
    return config


def test_losses_are_those_of_the_smoothed_labels_of_normalised_pixels(tmp_path):
    config = linear(label_smoothing=0.2)
    config.data.update(mean=(0.25,), std=(0.5,))
    task = build(config, tmp_path)
    rng = np.random.default_rng(0)
    params, model_state = task.init(jax.random.key(0))
    params = jax.tree.map(lambda x: rng.normal(size=x.shape), params)
    batch = next(task.train_batches(0))
    batch["weights"] = rng.integers(0, 3, 16).astype(np.float32)
    assert float(task.weight(batch)) == batch["weights"].sum()
    x = (batch["images"].reshape(16, 64) / 16 - 0.25) / 0.5
    logits = x @ params["output"]["kernel"] + params["output"]["bias"]
    logs = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    plain = -logs[np.arange(16), batch["labels"]]
    smoothed = 0.8 * plain - 0.2 * logs.mean(1)
    params = jax.tree.map(jnp.float32, params)
    loss, _ = task.loss_sum(params, model_state, batch, jax.random.key(0))
    # Float32 sums of 64 products of about 1.
    np.testing.assert_allclose(loss, (smoothed * batch["weights"]).sum(), rtol=1e-5)
    sums = task.eval_sums(params, model_state, batch)
    correct = logits.argmax(1) == batch["labels"]
    assert 0 < correct.sum() < 16
    np.testing.assert_allclose(sums["loss"], plain @ batch["weights"], rtol=1e-5)
    assert float(sums["accuracy"]) == correct @ batch["weights"]
    assert float(sums["weight"]) == batch["weights"].sum()


def test_statistics_move_in_training_alone_and_rows_are_apart_in_evaluation(tmp_path):
    config = resnet_digits.get_config("smoke")
    config.model.stages = (1,)
    task = build(config, tmp_path)
    params, state = jax.jit(task.init)(jax.random.key(0))
    batch = next(task.train_batches(0))
    _, after = jax.jit(task.loss_sum)(params, state, batch, jax.random.key(0))
    assert jax.tree.structure(state) == jax.tree.structure(after)
    moved = [not np.array_equal(*x) for x in zip(*map(jax.tree.leaves, (state, after)),
                                                 strict=True)]  # fmt: skip
    assert all(moved)
    assert len(moved) == 6  # mean and variance of three layers
    evaluate = jax.jit(task.eval_sums)
    one_row = {**batch, "weights": np.eye(16, dtype=np.float32)[3]}
    expected = evaluate(params, after, one_row)["loss"]
    rng = np.random.default_rng(0)
    one_row["images"] = rng.integers(0, 17, batch["images"].shape, np.uint8)
    one_row["images"][3] = batch["images"][3]
    np.testing.assert_allclose(
        evaluate(params, after, one_row)["loss"], expected, rtol=1e-5
    )


def test_a_task_of_files(tmp_path):
    path = write_tar(tmp_path / "t.tar", contents())
    config = data_config(path, augment="resized_crop", mean=(0.4, 0.5, 0.6),
                         std=(0.2, 0.2, 0.3))  # fmt: skip
    config.batch_size = 4
    source = tasks.load(config)
    task = source.build(tmp_path)
    assert task.description == {
        "source": path,
        "sha256": source.sha256,
        "classes": 3,
        "train_images": 12,
        "validation_images": 6,
    }
    assert task.baselines == {"class frequencies": pytest.approx(np.log(3))}
    for batches in (list(task.eval_batches()), list(task.eval_batches())):
        assert sum(batch["weights"].sum() for batch in batches) == 6
    params, state = jax.eval_shape(task.init, jax.random.key(0))
    assert params["head"]["kernel"].shape == (8, 3)
    batch = next(task.train_batches(0))
    assert batch["images"].shape == (4, 16, 16, 3)
    loss, _ = jax.eval_shape(task.loss_sum, params, state, batch, jax.random.key(0))
    assert (loss.shape, loss.dtype) == ((), jnp.float32)
    config.data.sha256 = source.sha256
    tasks.load(config)
    config.data.sha256 = "0" * 64
    with pytest.raises(UserError, match="the data found has"):
        tasks.load(config)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("data.image_size", 0, "image_size=0: must be an integer in .1, 8192"),
        ("data.image_size", 32, "8x8 .*; name a folder or a tar"),
        ("data.augment", "resized_crop", "8x8 .*; name a folder or a tar"),
        ("data.augment", "turn", "augment=turn: must be one of none, shift, resized"),
        ("data.split_seed", -1, "split_seed=-1: must be an integer in .0, "),
        (
            "data.std",
            (0.0,),
            r"std=\(0.0,\): must be 1 or more .* above 0",
        ),
        ("data.std", (1.0, 1.0), "must be equally many"),
        ("data.mean", (float("nan"),), r"mean=\(nan,\): must be .* a finite number"),
        ("label_smoothing", 1.0, r"label_smoothing=1.0: .* in \[0, 1\)"),
        ("batch_size", 2000, "batch_size=2000: must be at most 1438"),
        ("accumulate", 3, "accumulate=3: must be 1 or more and divide"),
        ("model.name", "vgg", "name=vgg: must be one of perceptron, resnet"),
        ("model.width", 0, "width=0: must be an integer in .1, "),
        (
            "model.stages",
            (1, 0),
            r"stages=\(1, 0\): .* each an integer in \[1, 1",
        ),
        ("model.stages", (), "must be 1 or more items"),
        ("model.stages", (1.5,), "each an integer"),
        ("data.mean", ("a",), "each a finite number"),
        ("model.block", "wide", "block=wide: must be one of basic, bottleneck"),
        ("model.stem", "big", "stem=big: must be one of cifar, imagenet"),
        ("model.dtype", "int8", "dtype=int8: must be one of float32, bfloat16"),
    ],
)
def test_bad_values_are_refused(tmp_path, field, value, message):
    config = ConfigDict(resnet_digits.get_config("smoke").to_dict())
    *folder, name = field.split(".")
    (config[folder[0]] if folder else config)[name] = value
    with pytest.raises(UserError, match=message) as error:
        build(Job.of(config).config, tmp_path)
    assert "\n" not in str(error.value)


def test_numbers_for_channels_must_fit(tmp_path):
    config = data_config(write_tree(tmp_path, contents()), mean=(0.5, 0.5),
                         std=(1.0, 1.0))  # fmt: skip
    with pytest.raises(UserError, match=r"mean=.*1 number, or one for each of 3"):
        tasks.load(config)


def test_hidden_layers_of_a_perceptron_are_checked(tmp_path):
    config = linear()
    config.model.num_layers = -1
    with pytest.raises(UserError, match=r"num_layers=-1: must be an integer in \[0, "):
        Job.of(config)
