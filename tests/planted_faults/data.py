"""Faults of what reads texts, images and questions, and of the loss."""

from tests.planted_faults.fault import Fault

IMAGES = "tests/test_cases_images.py"
TEXTS = "tests/test_cases_text.py"
PATHS = "tests/test_cases_paths.py"

FAULTS = [
    Fault(
        "loss: the maximum is subtracted last",
        "experiments/models/losses.py",
        " - jax.lax.stop_gradient(jnp.max(logits, axis=-1, keepdims=True))",
        "",
        ("tests/test_losses.py", "-k", "huge"),
    ),
    Fault(
        "loss: differences before they are wide",
        "experiments/models/losses.py",
        "logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))",
        "pass",
        ("tests/test_losses.py", "-k", "narrow"),
    ),
    Fault(
        "text: special tokens in it are special",
        "experiments/data/text.py",
        "tokenizer.encode_special_tokens = True",
        "pass",
        (TEXTS, "-k", "special"),
    ),
    Fault(
        "text: byte-order marks stay where files were joined",
        "experiments/data/text.py",
        '.replace(BYTE_ORDER_MARK, "")',
        "",
        (TEXTS, "-k", "mark"),
    ),
    Fault(
        "text: a zero byte is a border",
        "experiments/data/text.py",
        '.replace(b"\\0", b"\\xff")',
        "",
        (TEXTS, "-k", "zero_byte"),
    ),
    Fault(
        "text: runs have no end",
        "experiments/data/text.py",
        '            pre_tokenizers.Split(Regex(f".{{{LONGEST_RUN}}}"), "isolated"),\n',
        "",
        (TEXTS, "-k", "cut_at_256"),
    ),
    Fault(
        "questions: the border of validation has no say",
        "experiments/data/squad.py",
        "digest.update(str(len(train)).encode())",
        "pass",
        (TEXTS, "-k", "questions_that_move"),
    ),
    Fault(
        "questions: of equal windows the later one owns",
        "experiments/data/squad_windows.py",
        "first[1:]) // 2 + 1",
        "first[1:] + 1) // 2",
        ("tests/test_squad_windows.py", "-k", "earlier or most_context"),
    ),
    Fault(
        "images: sixteen bits are cut off at 255",
        "experiments/data/decoding.py",
        'if image.mode.startswith("I"):',
        "if False:",
        (IMAGES, "-k", "sixteen"),
    ),
    Fault(
        "images: transparency is left out",
        "experiments/data/decoding.py",
        "if image.has_transparency_data:",
        "if False:",
        (IMAGES, "-k", "transparent"),
    ),
    Fault(
        "images: orientations 6 and 8 change places",
        "experiments/data/decoding.py",
        "6: Image.Transpose.ROTATE_270",
        "6: Image.Transpose.ROTATE_90",
        (IMAGES, "-k", "turned"),
    ),
    Fault(
        "images: every decoder is asked",
        "experiments/data/decoding.py",
        ", formats=FORMATS",
        "",
        (IMAGES, "-k", "decoder"),
    ),
    Fault(
        "images: as many pixels as one likes",
        "experiments/data/decoding.py",
        "if image.width * image.height > LARGEST_IMAGE:",
        "if False:",
        (IMAGES, "-k", "pixels"),
    ),
    Fault(
        "images: hidden folders are classes",
        "experiments/data/stores.py",
        'return name.startswith(".") or name in LEFT_BEHIND',
        "return False",
        (IMAGES, "-k", "left or leave"),
    ),
    Fault(
        "tar: what follows the last member is not read",
        "experiments/data/stores.py",
        "    while file.take(PIECE):  # to the checksum at the end\n        pass\n",
        "",
        (IMAGES, "-k", "flipped"),
    ),
    Fault(
        "tar: a damaged header is the end",
        "experiments/data/stores.py",
        "if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):",
        "if False:",
        (IMAGES, "-k", "damaged_header"),
    ),
    Fault(
        "tar: members may lead out",
        "experiments/data/stores.py",
        'if path.is_absolute() or ".." in path.parts:',
        "if path.is_absolute():",
        (IMAGES, "-k", "lead_out"),
    ),
    Fault(
        "tar: no limit to what it unpacks to",
        "experiments/data/stores.py",
        "if self._largest is not None and place > self._largest:",
        "if False:",
        (IMAGES, "-k", "no_more_than"),
    ),
    Fault(
        "tar: headers of any size",
        "experiments/data/stores.py",
        "if not 0 <= size <= LARGEST_HEADER:",
        "if size < 0:",
        (IMAGES, "-k", "claims"),
    ),
    Fault(
        "paths: any that opens is a file",
        "experiments/common/inputs.py",
        "if stat.S_ISREG(mode):",
        "if not stat.S_ISDIR(mode):",
        (PATHS, "-k", "regular"),
    ),
    Fault(
        "paths: other machines are folders here",
        "experiments/common/inputs.py",
        "if REMOTE.match(path):",
        "if False:",
        (PATHS, "-k", "elsewhere"),
    ),
    Fault(
        "errors: line breaks in what was named",
        "experiments/common/errors.py",
        "super().__init__(printable(text))",
        "super().__init__(text)",
        (PATHS, "-k", "one_line"),
    ),
]
