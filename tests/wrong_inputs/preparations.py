"""What lies in a folder before a command is run; names are those of the lists."""

import functools
import json
import os
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, models

from experiments.configs import bert_tiny, digits_zoo, search_rules
from experiments.configs import squad as squad_config
from experiments.data import digits, squad_sample
from experiments.diagnosis.following import Settings
from experiments.rule_search.search import ARCHIVE
from experiments.runs import folders, seals
from experiments.tasks import Source
from experiments.tasks.pretrained import SIZES
from experiments.training.job import Job
from tests.test_cases_images import png
from tests.test_images import contents, write_tar, write_tree

Preparation = Callable[[Path, Path], object]  # the folder of inputs, the work directory


def text_file(content: bytes, name: str = "text") -> Preparation:
    """A file of its own."""

    def prepare(given: Path, work: Path) -> None:
        (given / name).parent.mkdir(parents=True, exist_ok=True)
        (given / name).write_bytes(content)

    return prepare


def in_work(name: str, content: bytes) -> Preparation:
    """A file in the work directory."""

    def prepare(given: Path, work: Path) -> None:
        path = work / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)

    return prepare


def sparse(size: int) -> Preparation:
    """A file with a hole of ``size`` bytes."""

    def prepare(given: Path, work: Path) -> None:
        with (given / "huge").open("wb") as file:
            file.truncate(size)

    return prepare


def questions(change: Callable[[dict], object]) -> Preparation:
    """The embedded questions, changed, in a file."""

    def prepare(given: Path, work: Path) -> None:
        document = squad_sample.document()
        change(document)
        (given / "squad.json").write_text(json.dumps(document))

    return prepare


def tree(change: Callable[[dict[str, bytes]], object]) -> Preparation:
    """Images in a folder, changed."""

    def prepare(given: Path, work: Path) -> None:
        files = contents()
        change(files)
        write_tree(given / "images", files)

    return prepare


def tar(
    mode: str, damage: Callable[[bytes], bytes] = bytes, **others: bytes
) -> Preparation:
    """Images in an archive, damaged."""

    def prepare(given: Path, work: Path) -> None:
        write_tar(given / "images.tar", {**contents(), **others}, mode)
        whole = (given / "images.tar").read_bytes()
        (given / "images.tar").write_bytes(damage(whole))

    return prepare


def tar_with(name: str, kind: bytes, target: str = "") -> Preparation:
    """An archive with a member of another kind."""

    def prepare(given: Path, work: Path) -> None:
        with tarfile.open(given / "images.tar", "w") as archive:
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, target
            archive.addfile(member)

    return prepare


def config_file(content: str) -> Preparation:
    """A config of the user's own."""
    return lambda given, work: (given / "config.py").write_text(content)


def smoke(change: str) -> Preparation:
    """The config of the digits, changed by a line."""
    return config_file(f"{SMOKE}    {change}\n{END}")


def locked(prepare: Preparation, name: str, mode: int = 0) -> Preparation:
    """What another one prepares, with the permissions of one part of it taken away."""

    def prepare_and_lock(given: Path, work: Path) -> None:
        prepare(given, work)
        path = (given.parent / name) if name.startswith("work") else given / name
        path.chmod(mode)

    return prepare_and_lock


def a_folder(name: str) -> Preparation:
    """An empty one, in the folder of inputs."""
    return lambda given, work: (given / name).mkdir(parents=True)


def in_work_folder(name: str) -> Preparation:
    """A folder where a file of the work directory belongs."""
    return lambda given, work: (work / name).mkdir(parents=True)


def in_work_pipe(name: str) -> Preparation:
    """A pipe there."""

    def prepare(given: Path, work: Path) -> None:
        (work / name).parent.mkdir(parents=True, exist_ok=True)
        os.mkfifo(work / name)

    return prepare


def _searching(**changes: Any) -> Any:
    config = search_rules.get_config("smoke")
    config.update(changes)
    return config


@functools.cache
def _config(rate: float | None) -> Any:
    config = digits_zoo.get_config("smoke")
    config.optimizer.name = "adamw"
    if rate is not None:
        config.optimizers.adamw.learning_rate = rate
    sha256 = digits.load()[2]
    return Job.of(config).on(Source(sha256, lambda workdir: None)).config


FINAL = {
    "kind": "final",
    "step": 2,
    "time": 0.0,
    "status": "complete",
    "loss": 1.5,
    "accuracy": 0.5,
    "optimizer": "adamw",
    "learning_rate": 0.1,
    "train_seconds": 1.0,
    "compile_seconds": 1.0,
    "parameters": 10,
    "baselines": {"x": 2.0},
    "data": {"source": "digits", "sha256": "0"},
    "versions": {"jax": "1"},
    "hardware": "a machine",
    "command": "python",
}


def run(
    content: bytes | Preparation, where: str = ".", rate: float | None = None
) -> Preparation:
    """A run of the digits whose records are something else.

    Args:
      content: of the file of records, or what prepares it.
      where: its folder in the work directory.
      rate: of the learning, if it is another than the config's.
    """

    def prepare(given: Path, work: Path) -> None:
        folder = work / where
        folder.mkdir(parents=True)
        folders.write_config(folder, _config(rate))
        if isinstance(content, bytes):
            (folder / "metrics.jsonl").write_bytes(content)
        else:
            content(given, folder)

    return prepare


def final(**changes: Any) -> bytes:
    """A last record with changes, and without the fields that ``gone`` names."""
    gone = changes.pop("gone", ())
    record = {name: x for name, x in {**FINAL, **changes}.items() if name not in gone}
    return json.dumps(record).encode() + b"\n"


def searched(**changes: Any) -> Preparation:
    """A search of one rule, changed, and without the fields that ``gone`` names."""
    gone = changes.pop("gone", ())
    record = {name: x for name, x in {**RULE, **changes}.items() if name not in gone}
    return in_work(ARCHIVE, json.dumps(record).encode() + b"\n")


def search_config(change: str) -> Preparation:
    """The config of a search, changed by a line."""
    return config_file(f"{SEARCH}    {change}\n{END}")


def followed(*records: dict[str, Any]) -> Preparation:
    """Measurements of a training that is followed, with the usual settings."""
    settings = Settings(*SETTINGS)._asdict()
    lines = [{"kind": "header", "settings": settings}, *records]
    content = "".join(json.dumps(line) + "\n" for line in lines)
    return in_work("curvature.jsonl", content.encode())


def pretrained(change: Callable[[Path], object]) -> Preparation:
    """A finished run of task mlm, as far as files go, changed."""

    def prepare(given: Path, work: Path) -> None:
        config = bert_tiny.get_config("smoke")
        sizes = squad_config.get_config("smoke").model
        config.model.update({name: sizes[name] for name in SIZES})
        (given / "config.json").write_text(folders.plain_text(config))
        (given / "params").mkdir()
        (given / "params" / "array").write_bytes(b"kept")
        (given / "metrics.jsonl").touch()
        seal = seals.take(given, FINAL)
        (given / "metrics.jsonl").write_bytes(final(seal=seal))
        change(given)

    return prepare


def only(names: str, others: bytes, suffix: str) -> Callable[[dict[str, bytes]], None]:
    """Gives all files whose names start with something another content and ending."""

    def change(files: dict[str, bytes]) -> None:
        for name in [name for name in files if name.startswith(names)]:
            files[f"{name.rpartition('.')[0]}{suffix}"] = others
            del files[name]

    return change


def flipped(place: int) -> Callable[[bytes], bytes]:
    """Changes one bit of a byte."""

    def damage(data: bytes) -> bytes:
        changed = bytearray(data)
        changed[place] ^= 1
        return bytes(changed)

    return damage


def pipe(given: Path, work: Path) -> None:
    """A pipe that nobody writes to, alone and among texts and images."""
    os.mkfifo(given / "pipe")
    (given / "texts").mkdir()
    os.mkfifo(given / "texts" / "a.txt")


def first(document: dict) -> dict:
    """The first question of all."""
    return document["data"][0]["paragraphs"][0]["qas"][0]


RULE = {
    "tier": 1,
    "fingerprint": "0" * 16,
    "rule": "g",
    "program": [[0, 0, 0, 0, 5]],
    "nodes": 1,
    "fitness": -1.0,
    "losses": [0.5, 0.5],
    "rates": [0.1, 0.1],
    "refused": None,
    "seconds": 0.1,
}
SETTINGS = (6, 80, 4, 64)  # what `follow` measures without flags
DIGITS = (
    "from experiments.configs import digits_zoo\n\n\ndef get_config(variant='full'):\n"
)
END = "    return config\n"
SEARCH = (
    "from experiments.configs import search_rules\n\n\n"
    "def get_config(variant='full'):\n    config = search_rules.get_config('smoke')\n"
)
SMOKE = f"{DIGITS}    config = digits_zoo.get_config('smoke')\n"

BY_NAME: dict[str, Preparation] = {
    "nothing": lambda given, work: None,
    "a file": text_file(b"kept", "file"),
    "pipe": pipe,
    "sparse file": sparse(2**33),
    "empty text": text_file(b""),
    "white text": text_file(b" \n \n\t\n"),
    "mark alone": text_file(b"\xef\xbb\xbf"),
    "latin text": text_file("caf\u00e9 au lait\n\nbread".encode("latin-1")),
    "utf-16 text": text_file("caf\u00e9 au lait\n\nbread".encode("utf-16")),
    "one document": text_file(b"one document only, of some words"),
    "equal documents": text_file(b"same words\n\nsame  words\n\nsame words"),
    "short text": text_file(b"a b c d\n\nd e f\n\ng"),
    "folder of no texts": text_file(b"a", "notes.md"),
    "folder of hidden texts": text_file(b"a", "._a.txt"),
    "folder of a bad text": text_file(b"\xff", "a.txt"),
    "text with a line break in its name": text_file(b"\xff", "a\nb.txt"),
    "tokenizer: garbage": in_work("tokenizer.json", b"garbage"),
    "tokenizer: empty": in_work("tokenizer.json", b""),
    "tokenizer: object": in_work("tokenizer.json", b"{}"),
    "tokenizer: binary": in_work("tokenizer.json", b"\0\xff\xfe"),
    "tokenizer: folder": in_work("tokenizer.json/a", b""),
    "tokenizer: of another kind": lambda given, work: (
        work.mkdir(),
        Tokenizer(models.BPE()).save(str(work / "tokenizer.json")),
    ),
    "tokenizer: pipe": lambda given, work: (
        work.mkdir(),
        os.mkfifo(work / "tokenizer.json"),
    ),
    "work: config is a list": in_work("config.json", b"[]"),
    "work: config is empty": in_work("config.json", b""),
    "work: config is binary": in_work("config.json", b"\xff\0"),
    "work: config is nested": in_work("config.json", b"[" * 100_000),
    "work: config is a folder": in_work("config.json/a", b""),
    "work: config is null": in_work("config.json", b"null"),
    "work: config of something else": in_work("config.json", b'{"a": 1}'),
    "results: a folder": lambda given, work: (given / "table.md").mkdir(),
    "checkpoint: empty": text_file(b"", "run/checkpoints/2/about/x"),
    "checkpoint: garbage": text_file(b"{", "run/checkpoints/2/about/metadata"),
    "follow: binary": in_work("curvature.jsonl", b"\xff\0\n"),
    "follow: a list": in_work("curvature.jsonl", b"[]\n"),
    "follow: other settings": in_work(
        "curvature.jsonl", b'{"kind": "header", "settings": {}}\n'
    ),
    "follow: a folder": in_work("curvature.jsonl/a", b""),
    "records without config": in_work("metrics.jsonl", b'{"kind": "final"}\n'),
    "squad: not JSON": text_file(b"{", "squad.json"),
    "squad: empty": text_file(b"", "squad.json"),
    "squad: deep": text_file(b"[" * 100_000, "squad.json"),
    "squad: long number": text_file(b'{"data": ' + b"9" * 5000 + b"}", "squad.json"),
    "squad: binary": text_file(b"\x80\x81", "squad.json"),
    "squad: list": text_file(b"[]", "squad.json"),
    "squad: null": text_file(b"null", "squad.json"),
    "squad: text": text_file(b'"data"', "squad.json"),
    "squad: nothing in it": text_file(b"{}", "squad.json"),
    "squad: no article": questions(lambda d: d.update(data=[])),
    "squad: data is a text": questions(lambda d: d.update(data="x")),
    "squad: article is a number": questions(lambda d: d["data"].insert(1, 3)),
    "squad: no paragraphs": questions(lambda d: d["data"][1].pop("paragraphs")),
    "squad: paragraph is null": questions(
        lambda d: d["data"][0]["paragraphs"].append(None)
    ),
    "squad: no context": questions(
        lambda d: d["data"][0]["paragraphs"][0].pop("context")
    ),
    "squad: context is a list": questions(
        lambda d: d["data"][0]["paragraphs"][0].update(context=[])
    ),
    "squad: no id": questions(lambda d: first(d).pop("id")),
    "squad: id is a number": questions(lambda d: first(d).update(id=7)),
    "squad: no question": questions(lambda d: first(d).pop("question")),
    "squad: no answers": questions(lambda d: first(d).pop("answers")),
    "squad: empty answers": questions(lambda d: first(d).update(answers=[])),
    "squad: white answer": questions(
        lambda d: first(d).update(answers=[{"answer_start": 3, "text": " "}])
    ),
    "squad: wrong place": questions(
        lambda d: first(d)["answers"][0].update(answer_start=1)
    ),
    "squad: place before the start": questions(
        lambda d: first(d)["answers"][0].update(answer_start=-3)
    ),
    "squad: place beyond the end": questions(
        lambda d: first(d)["answers"][0].update(answer_start=10**12)
    ),
    "squad: place is a text": questions(
        lambda d: first(d)["answers"][0].update(answer_start="4")
    ),
    "squad: place is half": questions(
        lambda d: first(d)["answers"][0].update(answer_start=4.5)
    ),
    "squad: half of a character": questions(
        lambda d: first(d).update(question="\ud83d")
    ),
    "squad: equal ids": questions(lambda d: d["data"].append(d["data"][0])),
    "squad: equal ids of two lines": questions(
        lambda d: first(d).update(id="a\nb") or d["data"].append(d["data"][0])
    ),
    "squad: one article": questions(lambda d: d.update(data=d["data"][:1])),
    "images: none": lambda given, work: (given / "images").mkdir(),
    "images: train alone": tree(lambda f: [f.pop(n) for n in list(f) if "val" in n]),
    "images: no training": tree(lambda f: [f.pop(n) for n in list(f) if "train" in n]),
    "images: class in one split": tree(
        lambda f: [f.pop(n) for n in list(f) if n.startswith("val/dog")]
    ),
    "images: one class": tree(lambda f: [f.pop(n) for n in list(f) if "eel" not in n]),
    "images: cut": tree(
        lambda f: f.update({"train/cat/1.JPEG": f["train/cat/1.JPEG"][:99]})
    ),
    "images: empty file": tree(lambda f: f.update({"train/cat/z.png": b""})),
    "images: text": tree(lambda f: f.update({"train/cat/z.png": b"no image"})),
    "images: program": tree(
        lambda f: f.update({"train/cat/z.jpg": b"%!PS-Adobe-3.0 EPSF-3.0\n"})
    ),
    "images: web page": tree(lambda f: f.update({"val/cat/z.jpg": b"<html>404"})),
    "images: too many pixels": tree(
        lambda f: f.update({"train/cat/z.png": png(13_000, 13_000, 8, 2)})
    ),
    "images: too large a file": lambda given, work: (
        write_tree(given / "images", contents()),
        sparse(2**33)(given / "images/train/cat", work),
        (given / "images/train/cat/huge").rename(given / "images/train/cat/z.png"),
    ),
    "images: line break in a name": tree(
        lambda f: f.update({"train/cat/a\nb.png": b"?"})
    ),
    "images: markup in a name": tree(
        lambda f: f.update({"train/cat/[red]<b>.png": b"?"})
    ),
    "tar: cut": tar("w", lambda data: data[:-9000]),
    "tar: cut at its end": tar("w", lambda data: data.rstrip(b"\0")),
    "tar: damaged header": tar("w", flipped(0)),
    "tar.gz: cut": tar("w:gz", lambda data: data[:2000]),
    "tar.gz: flipped": tar("w:gz", flipped(3000)),
    "tar.gz: wrong checksum": tar("w:gz", flipped(-5)),
    "tar.bz2: cut": tar("w:bz2", lambda data: data[:2000]),
    "tar.xz: cut": tar("w:xz", lambda data: data[:-20]),
    "tar.xz: flipped": tar("w:xz", flipped(3000)),
    "tar: text": text_file(b"no tar" * 500, "images.tar"),
    "tar: empty": text_file(b"", "images.tar"),
    "tar: zip": text_file(b"PK\3\4" + bytes(60), "images.tar"),
    "tar: leads out": tar("w", **{"train/../a.png": b"?"}),
    "tar.gz: leads out": tar("w:gz", **{"../train/a/1.png": b"?"}),
    "tar: absolute": tar("w", **{"/train/a/1.png": b"?"}),
    "tar: link": tar_with("train/cat/1.jpg", tarfile.SYMTYPE, "/etc/passwd"),
    "tar: hard link": tar_with("train/cat/1.jpg", tarfile.LNKTYPE, "val/cat/1.jpg"),
    "tar: pipe": tar_with("train/cat/1.jpg", tarfile.FIFOTYPE),
    "tar: device": tar_with("train/cat/1.jpg", tarfile.CHRTYPE),
    "config: empty": config_file(""),
    "config: not a function": config_file("get_config = 3\n"),
    "config: does not compile": config_file("def get_config(:\n"),
    "config: raises": config_file("def get_config():\n    return 1 / 0\n"),
    "config: exits": config_file("import sys\n\ndef get_config():\n    sys.exit(0)\n"),
    "config: none": config_file("def get_config():\n    return None\n"),
    "config: dict": config_file("def get_config():\n    return {'steps': 2}\n"),
    "config: frozen": config_file(
        "from ml_collections import FrozenConfigDict\n\nget_config = FrozenConfigDict\n"
    ),
    "config: empty ConfigDict": config_file(
        "from ml_collections import ConfigDict\n\nget_config = ConfigDict\n"
    ),
    "config: no optimizers": smoke("del config.optimizers"),
    "config: no optimizer": smoke("del config.optimizer"),
    "config: no checkpoint": smoke("del config.checkpoint"),
    "config: no comparison": smoke("del config.compare"),
    "config: no sweep": smoke("del config.sweep"),
    "config: no data": smoke("del config.data"),
    "config: a word for steps": smoke("del config.steps; config.steps = 'two'"),
    "config: a number for optimizers": smoke(
        "del config.optimizers; config.optimizers = 3"
    ),
    "config: a number for an optimizer": smoke(
        "del config.optimizers.adamw; config.optimizers.adamw = 5; "
        "config.optimizer.name = 'adamw'"
    ),
    "config: a text for a rate": smoke(
        "config.optimizer.name = 'adamw'; del config.optimizers.adamw.learning_rate; "
        "config.optimizers.adamw.learning_rate = 'fast'; "
        "config.compare.optimizers = ('adamw',)"
    ),
    "config: a text for rates": smoke(
        "del config.sweep.learning_rates.adamw; "
        "config.sweep.learning_rates.adamw = '0.1'"
    ),
    "config: a number to compare": smoke(
        "del config.compare; config.compare = {'optimizers': (1,)}"
    ),
    "config: a text to compare": smoke(
        "del config.compare; config.compare = {'optimizers': 'adamw'}"
    ),
    "config: a name that leads out": smoke(
        "config.optimizers['/adamw'] = config.optimizers.adamw; "
        "config.sweep.learning_rates['/adamw'] = (0.1,); "
        "config.compare.optimizers = ('/adamw',)"
    ),
    "config: an object for the seed": smoke("del config.seed; config.seed = object()"),
    "config: an object in a field of its own": smoke("config.note = object()"),
    "config: contains itself": smoke("config.note = config"),
    "config: nested without end": smoke(
        "config.note = []; x = config.note; "
        "[x.append([]) or (x := x[0]) for _ in range(5000)]"
    ),
    "config: a required field": smoke(
        "from ml_collections import config_dict; "
        "config.update(steps=config_dict.required_placeholder(int))"
    ),
    "config: a long number": smoke("config.note = 10**5000"),
    "config: imports what is not there": config_file("import no_such_module_at_all\n"),
    "config: binary": lambda given, work: (given / "config.py").write_bytes(b"\0\xff"),
    "config: Latin-1": lambda given, work: (given / "config.py").write_bytes(
        b"x = 'caf\xe9'\n"
    ),
    "config: without end": lambda given, work: (given / "config.py").symlink_to(
        "/dev/zero"
    ),
    "config: pipe": lambda given, work: os.mkfifo(given / "config.py"),
    "config: folder": lambda given, work: (given / "config.py").mkdir(),
    "config: unreadable": locked(config_file(""), "config.py"),
    "config: in a folder that cannot be entered": lambda given, work: (
        (given / "config.py").symlink_to("file/config.py") or (given / "file").touch()
    ),
    "config: a line break in what it raises": config_file(
        "def get_config():\n    raise ValueError('two\\n\\nlines')\n"
    ),
    "link to nothing": lambda given, work: (given / "link").symlink_to("nothing"),
    "link to itself": lambda given, work: (given / "loop").symlink_to("loop"),
    "locked folder": locked(a_folder("locked"), "locked"),
    "read-only folder": locked(a_folder("read_only"), "read_only", 0o555),
    "locked text": locked(text_file(b"a\n\nb", "locked/text"), "locked"),
    "unreadable text": locked(text_file(b"a\n\nb"), "text"),
    "unreadable text among others": locked(text_file(b"a", "a.txt"), "a.txt"),
    "squad: unreadable": locked(questions(dict.copy), "squad.json"),
    "squad: question of two lines with equal ids": questions(
        lambda d: first(d).update(id="a\n[red]b") or d["data"].append(d["data"][0])
    ),
    "squad: long id": questions(
        lambda d: first(d).update(id="a" * 10**5) or d["data"].append(d["data"][0])
    ),
    "pretrained: params changed": pretrained(
        lambda run: (run / "params" / "array").write_bytes(b"lost")
    ),
    "pretrained: params gone": pretrained(lambda run: shutil.rmtree(run / "params")),
    "pretrained: params are a file": pretrained(
        lambda run: shutil.rmtree(run / "params") or (run / "params").touch()
    ),
    "images: unreadable": locked(tree(dict.copy), "images/train/cat/1.JPEG"),
    "images: locked class": locked(tree(dict.copy), "images/train/cat"),
    "images: locked split": locked(tree(dict.copy), "images/train"),
    "images: a class of HEIC": tree(
        lambda f: [only(f"{part}/eel", b"?", ".heic")(f) for part in ("train", "val")]
    ),
    "images: a class of WebP in one split": tree(only("val/eel", b"?", ".webp")),
    "images: line break in a class": tree(
        lambda f: f.update({"train/a\nb/1.png": b"?", "val/a\nb/1.png": b"?"})
    ),
    "images: a class of two lines in one split": tree(
        lambda f: f.update({"train/a\nb/1.png": b"?"})
    ),
    "tar: a class of HEIC": lambda given, work: write_tar(
        given / "images.tar",
        {
            f"{name.rpartition('.')[0]}.heic" if "/eel" in name else name: data
            for name, data in contents().items()
        },
        "w",
    ),
    "results: a folder of lines": a_folder("table.jsonl"),
    "work: report is a folder": in_work_folder("report.html"),
    "work: picture is a folder": in_work_folder("loss.png"),
    "work: table is a folder": in_work_folder("sweep.md"),
    "work: page is a folder": in_work_folder("diagnosis.html"),
    "work: results are a folder": in_work_folder("diagnosis.json"),
    "work: curvature picture is a folder": in_work_folder("curvature.png"),
    "work: checkpoints are a file": in_work("checkpoints", b""),
    "work: checkpoints are a pipe": in_work_pipe("checkpoints"),
    "work: a folder where the config is written": in_work_folder("config.json.partial"),
    "work: config is deep": in_work("config.json", b'{"a": ' * 900 + b"0" + b"}" * 900),
    "work: config is unreadable": locked(
        in_work("config.json", b"{}"), "work/config.json"
    ),
    "work: config is a pipe": in_work_pipe("config.json"),
    "work: config has a long number": in_work(
        "config.json", b'{"a": ' + b"9" * 5000 + b"}"
    ),
    "estimators: binary": in_work("b.partial.jsonl", b"\xff\0\n"),
    "estimators: a list": in_work("b.partial.jsonl", b"[1]\n"),
    "estimators: no settings": in_work("b.partial.jsonl", b"{}\n"),
    "estimators: no result": in_work("b.partial.jsonl", b'{"settings": {}}\n'),
    "estimators: a folder": in_work_folder("b.partial.jsonl"),
    "estimators: nested": in_work("b.partial.jsonl", b"[" * 100_000 + b"\n"),
    "run: a list": run(b"[1]\n"),
    "run: a number": run(b"3\n"),
    "run: no status": run(final(gone=("status",))),
    "run: unknown status": run(final(status="done")),
    "run: text for a loss": run(final(loss="low")),
    "run: text for a step": run(final(step="2")),
    "run: text for seconds": run(final(train_seconds="long")),
    "run: null for baselines": run(final(baselines=None)),
    "run: text for a baseline": run(final(baselines={"x": "low"})),
    "run: no kind": run(final(gone=("kind",))),
    "run: unknown kind": run(final(kind="note")),
    "run: binary": run(b"\xff\0"),
    "run: binary line": run(b"\xff\0\n"),
    "run: nested": run(b"[" * 100_000 + b"\n"),
    "run: a long number": run(b'{"step": ' + b"9" * 5000 + b"}\n"),
    "run: an empty line": run(b"\n" + final()),
    "run: a folder": run(a_folder_of_records := in_work_folder("metrics.jsonl")),
    "run: unreadable": locked(run(final()), "work/metrics.jsonl"),
    "run: a pipe": run(in_work_pipe("metrics.jsonl")),
    "run: changed": run(final(seal={"metrics.jsonl": "0"})),
    "compared: a list": run(b"[1]\n", "adamw"),
    "compared: no status": run(final(gone=("status",)), "adamw"),
    "compared: text for a loss": run(final(loss="low"), "adamw"),
    "compared: text for an accuracy": run(final(accuracy="high"), "adamw"),
    "compared: binary": run(b"\xff\0", "adamw"),
    "compared: nested": run(b"[" * 100_000 + b"\n", "adamw"),
    "compared: a folder": run(a_folder_of_records, "adamw"),
    "compared: config of something else": in_work("adamw/config.json", b'{"a": 1}'),
    "compared: a file for a run": in_work("adamw", b""),
    "swept: a list": run(b"[1]\n", "adamw/0.1", 0.1),
    "swept: no status": run(final(gone=("status",)), "adamw/0.1", 0.1),
    "swept: text for a loss": run(final(loss="low"), "adamw/0.1", 0.1),
    "swept: a folder": run(a_folder_of_records, "adamw/0.1", 0.1),
    "follow: incomplete spectrum": followed(
        {"kind": "spectrum", "step": 0}
        | dict.fromkeys(("smallest", "smallest_error", "largest", "largest_error"), 1.0)
    ),
    "follow: text for a number": followed(
        {"kind": "smoothness", "step": 1, "gradient_norm": 1.0, "smoothness": "much"}
    ),
    "follow: text for a step": followed({"kind": "smoothness", "step": "last"}),
    "follow: no settings": in_work("curvature.jsonl", b'{"kind": "header"}\n'),
    "follow: settings are a list": in_work(
        "curvature.jsonl", b'{"kind": "header", "settings": []}\n'
    ),
    "follow: binary line": in_work("curvature.jsonl", b"\xff\0\n"),
    "follow: nested": in_work("curvature.jsonl", b"[" * 100_000 + b"\n"),
    "follow: unknown kind": in_work("curvature.jsonl", b'{"kind": "note"}\n'),
    "follow: unreadable": locked(
        in_work("curvature.jsonl", b"{}\n"), "work/curvature.jsonl"
    ),
    "follow: a pipe": in_work_pipe("curvature.jsonl"),
    "config: search without a tier": search_config("del config.tier2"),
    "config: search with a word for a tier": search_config(
        "del config.tier1; config.tier1 = 'short'"
    ),
    "config: search with a list in a list": search_config(
        "del config.seeds; config.seeds = [[0]]"
    ),
    "rules: unknown name": text_file(b"# mine\ng\ng * sgn(m)\n"),
    "rules: half of one": text_file(b"g +"),
    "rules: wrong count of arguments": text_file(b"exp(g, m)"),
    "rules: not finite": text_file(b"g * 1e999"),
    "rules: too deep": text_file(b"(" * 10_000 + b"g" + b")" * 10_000),
    "rules: too long": text_file(b"g + m + g2 + g3 + v"),
    "rules: random": text_file(b"g + noise"),
    "rules: code": text_file(b"__import__('os').system('touch /tmp/x')"),
    "rules: line break and colours": text_file(b"g * \x1b[31mm"),
    "search: another config": lambda given, work: (
        work.mkdir(),
        folders.write_config(work, _searching(slots=2)),
    ),
    "search: binary": in_work(ARCHIVE, b"\xff\0\n"),
    "search: a list": in_work(ARCHIVE, b"[1]\n"),
    "search: nested": in_work(ARCHIVE, b"[" * 100_000 + b"\n"),
    "search: not a number": searched(fitness=float("nan")),
    "search: no tier": searched(gone=("tier",)),
    "search: a text for a tier": searched(tier="first"),
    "search: no fitness": searched(gone=("fitness",)),
    "search: a text for a fitness": searched(fitness="low"),
    "search: a list for a fingerprint": searched(fingerprint=[1]),
    "search: a number for losses": searched(losses=3),
    "search: a rate of 0": searched(rates=[0]),
    "search: a folder": in_work_folder(ARCHIVE),
    "search: a pipe": in_work_pipe(ARCHIVE),
    "search: unreadable": locked(in_work(ARCHIVE, b"{}\n"), f"work/{ARCHIVE}"),
    "search: page is a folder": in_work_folder("report.html"),
    "learn: checkpoint of nothing": in_work("checkpoint.npz", b"nothing"),
    "learn: checkpoint is a folder": in_work_folder("checkpoint.npz"),
    "learn: checkpoint is a pipe": in_work_pipe("checkpoint.npz"),
    "search: picture is a folder": in_work_folder("front.png"),
    "checkpoint: a file": text_file(b"", "run/checkpoints/2"),
    "checkpoint: a list": text_file(b"[]", "run/checkpoints/2/about/metadata"),
    "checkpoint: nested": text_file(b"[" * 100_000, "run/checkpoints/2/about/metadata"),
    "checkpoint: binary": text_file(b"\xff\0", "run/checkpoints/2/about/metadata"),
    "checkpoint: a long step": text_file(
        b"{}", f"run/checkpoints/{'9' * 200}/about/metadata"
    ),
}
