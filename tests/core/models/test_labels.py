from pathlib import Path

import pytest

from cnnviz.core.errors import UsageError
from cnnviz.core.models.labels import class_index, read_labels

NAMES = ("tench, Tinca tinca", "golden retriever", "tabby", "tiger cat", "crane", "crane", "7")


@pytest.mark.parametrize(
    ("text", "index"),
    [
        ("tench", 0),
        ("Tinca_Tinca", 0),
        ("TIGER_cat", 3),
        ("golden", 1),
        ("  tabby ", 2),
        ("4", 4),
        ("7", 6),
    ],
)
def test_class_is_found_by_name_part_or_index(text: str, index: int) -> None:
    assert class_index(text, NAMES) == index


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("tabbi", "no class 'tabbi'; the nearest are 'tabby'"),
        ("9", "no class 9; the model's classes are 0 to 6"),
        ("-1", "no class -1; the model's classes are 0 to 6"),
        ("crane", r"'crane' is the name of several classes: 4 \(crane\), 5 \(crane\); use the ind"),
        ("tig", "no class 'tig'"),
        ("", "no class ''"),
    ],
)
def test_unknown_class_is_refused(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        class_index(text, NAMES)


def test_class_is_found_by_wnid() -> None:
    assert class_index("n02123159", ("tabby", "tiger cat"), ("n02123045", "n02123159")) == 1


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("l.txt", "\ufeffcat\ndog\r\nlaborer ant\n\n"),
        ("l.json", '["cat", "dog", "laborer ant"]'),
        ("l.json", '{"1": "dog", "0": "cat", "2": "laborer ant"}'),
    ],
)
def test_labels_are_read_from_text_and_json(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_bytes(text.encode())
    assert read_labels(tmp_path / name).names == ("cat", "dog", "laborer ant")


def test_imagenets_customary_json_gives_wnids_too(tmp_path: Path) -> None:
    (tmp_path / "l.json").write_text('{"0": ["n01", "tench"], "1": ["n02", "shark"]}')
    labels = read_labels(tmp_path / "l.json")
    assert (labels.names, labels.wnids) == (("tench", "shark"), ("n01", "n02"))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("l.txt", b"\xff\xfe", "is not UTF-8 text"),
        ("l.json", b"{", "is not JSON"),
        ("l.json", b"3", "holds neither a list nor a map"),
        ("l.json", b'{"a": "cat"}', "has the key 'a'; keys are class indices"),
        ("l.json", b'{"0": "cat", "2": "dog"}', "has no entry for class 1"),
        ("l.json", b'["cat", 3]', "neither names nor pairs"),
    ],
)
def test_malformed_labels_are_refused(
    tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UsageError, match=message):
        read_labels(tmp_path / name)


@pytest.mark.parametrize(
    ("name", "text", "names", "wnids"),
    [
        (
            "config.json",
            '{"model_type": "vit", "id2label": {"1": "dog", "0": "cat"}}',
            "cat dog",
            "",
        ),
        ("config.json", '{"architecture": "x", "label_names": ["cat", "dog"]}', "cat dog", ""),
        (
            "config.json",
            '{"label_names": ["n01", "n02"], "label_descriptions": {"n01": "cat", "n02": "dog"}}',
            "cat dog",
            "",
        ),
        ("class_to_idx.json", '{"dog": 1, "cat": 0}', "cat dog", ""),
        ("LOC_synset_mapping.txt", "n01440764 tench\nn01443537 carp\n", "tench carp", "yes"),
        ("lemma.txt", "n01440764\ttench\nn01443537\tcarp\n", "tench carp", "yes"),
        ("synsets.txt", "n01440764\nn01443537\n", "n01440764 n01443537", "yes"),
        ("names.txt", "n01440764\nother\n", "n01440764 other", ""),
    ],
)
def test_publishers_label_files_are_read(
    tmp_path: Path, name: str, text: str, names: str, wnids: str
) -> None:
    (tmp_path / name).write_text(text)
    labels = read_labels(tmp_path / name)
    assert labels.names == tuple(names.split())
    assert labels.wnids == (("n01440764", "n01443537") if wnids else None)


@pytest.mark.parametrize("text", ['{"cat": 0, "dog": 2}', '{"cat": 0, "dog": 0}', '{"cat": true}'])
def test_a_map_from_name_to_index_must_be_whole(tmp_path: Path, text: str) -> None:
    (tmp_path / "l.json").write_text(text)
    with pytest.raises(UsageError, match=r"no entry for class|the key 'cat'|the same index"):
        read_labels(tmp_path / "l.json")
