"""Folders of results at URLs: what is there, when it is written, and what is never touched."""

from pathlib import Path

import fsspec
import pytest

from cnnviz.core.errors import CnnvizError, UsageError
from cnnviz.core.output.mirrors import mirror, shown, uploading, url_of
from cnnviz.core.output.run_folder import RunFolder

OUT = "memory://bucket/out"
SUMMARY = {"schema": "cnnviz.x/1"}


@pytest.fixture
def store(tmp_path, monkeypatch):
    """The file system of memory://, without pauses between attempts."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr("cnnviz.core.remote.PAUSE", 0)
    system = fsspec.filesystem("memory")
    yield system
    system.store.clear()
    system.pseudo_dirs[:] = [""]


@pytest.fixture
def calls(store, monkeypatch):
    """The names of the files that are written and deleted, in order."""
    done = []
    for method in ("put_file", "rm_file"):
        real = getattr(type(store), method)

        def noted(self, *args, real=real, method=method, **options):
            done.append((method[:3].strip("_"), args[-1].partition("/out/")[2]))
            return real(self, *args, **options)

        monkeypatch.setattr(type(store), method, noted)
    return done


def written(files, *, overwrite=False, resume=False, summary=True):
    """Runs a command that writes some files and, if it is not interrupted, the summary."""
    folder = mirror(OUT)
    with uploading(folder):
        run = RunFolder.open(folder, overwrite=overwrite, resume=resume)
        for name, text in files.items():
            place, _, base = name.rpartition("/")
            (run.subfolder(place) if place else run).write_text(base, text)
        if not summary:
            raise KeyboardInterrupt
        run.finish(SUMMARY | {"files": run.files})
    return folder


def content(store):
    found = store.find(OUT)
    return {name.partition("/out/")[2]: store.cat_file(name).decode()[:1] for name in found}


def test_files_are_uploaded_and_the_mirror_is_removed(store, calls):
    folder = written({"a.txt": "a", "sub/b.txt": "b"})
    assert content(store) == {"a.txt": "a", "sub/b.txt": "b", "summary.json": "{"}
    assert calls[-1] == ("put", "summary.json")
    assert not folder.exists()
    assert url_of(folder) is None


def test_what_is_there_is_refused_without_overwrite(store, calls):
    written({"a.txt": "a"})
    calls.clear()
    for options in ({}, {"resume": True}):
        with pytest.raises(UsageError, match=rf"{OUT} (is not empty|holds a finished run)"):
            written({"a.txt": "b"}, **options)
    assert calls == []
    assert content(store)["a.txt"] == "a"


def test_a_replaced_summary_goes_first_and_comes_last(store, calls):
    written({"a.txt": "a", "old.txt": "o", "sub/b.txt": "b"})
    store.pipe_file(f"{OUT}/mine.txt", b"mine")
    calls.clear()
    written({"a.txt": "A", "new.txt": "n"}, overwrite=True)
    assert calls[1] == ("rm", "summary.json")  # after the probe
    assert calls[-1] == ("put", "summary.json")
    kept = {"a.txt": "A", "new.txt": "n", "mine.txt": "m", "summary.json": "{"}
    assert content(store) == kept


def test_an_interrupted_run_is_kept_and_goes_on(store, calls):
    with pytest.raises(KeyboardInterrupt):
        written({"a.txt": "a", "unfinished.json": "u"}, summary=False)
    assert content(store) == {"a.txt": "a", "unfinished.json": "u"}
    with pytest.raises(UsageError, match="use --resume to go on"):
        written({})
    calls.clear()
    written({"b.txt": "b"}, resume=True)
    assert ("put", "a.txt") not in calls  # it has not changed
    assert content(store).keys() == {"a.txt", "b.txt", "unfinished.json", "summary.json"}


def test_results_that_cannot_be_uploaded_are_kept_on_disk(store, monkeypatch, caplog):
    def full(self, *_args, **_options):
        raise OSError("no space")

    monkeypatch.setattr(type(store), "put_file", full)
    with pytest.raises(CnnvizError, match=rf"'{OUT}/a.txt' cannot be written: no space \(4 att"):
        written({"a.txt": "a"})
    kept = Path(caplog.messages[-1].partition("kept in ")[2])
    assert (kept / "a.txt").read_text() == "a"
    assert "summary.json" not in content(store)


def test_an_upload_that_is_interrupted_is_repeated(store, monkeypatch):
    real, failures = type(store).put_file, [OSError("reset"), TimeoutError()]

    def flaky(self, *args, **options):
        if failures:
            raise failures.pop()
        return real(self, *args, **options)

    monkeypatch.setattr(type(store), "put_file", flaky)
    written({"a.txt": "a"})
    assert content(store) == {"a.txt": "a", "summary.json": "{"}


def test_nothing_begins_where_nothing_can_be_written(store, monkeypatch):
    def refuse(self, *_args, **_options):
        raise PermissionError("Access Denied")

    monkeypatch.setattr(type(store), "pipe_file", refuse)
    with pytest.raises(CnnvizError, match="may not be written: Access Denied"):
        written({"a.txt": "a"})


def test_an_input_is_not_replaced(store):
    store.pipe_file(f"{OUT}/a.png", b"input")
    folder = mirror(OUT)
    run = RunFolder.open(folder, overwrite=True, inputs=[f"{OUT}/a.png"])
    with pytest.raises(CnnvizError, match=rf"{OUT}/a.png is one of the inputs"):
        run.write_text("a.png", "output")


@pytest.mark.parametrize("name", ["../x", "a/../../x", "/etc/x", "a//b", "./a", "a\\..\\x", "a\0b"])
def test_a_key_never_leads_out_of_the_mirror(store, tmp_path, name):
    store.store[f"/bucket/out/{name}"] = store.open(f"{OUT}/ok", "wb")
    with pytest.raises(CnnvizError, match=r"is not the name of a file below it|cannot be copied"):
        written({"a.txt": "a"}, overwrite=True)
    outside = [path for path in tmp_path.rglob("*") if path.is_file() and path.name != "ok"]
    assert outside == []


def test_a_key_that_is_a_file_and_a_folder_is_an_error(store):
    for name in ("a", "a/b"):
        store.store[f"/bucket/out/{name}"] = store.open(f"{OUT}/ok", "wb")
    with pytest.raises(CnnvizError, match=r"cannot be (copied|written)"):
        written({"x.txt": "x"}, overwrite=True)


def test_odd_keys_are_harmless(store):
    for name in ("line\nbreak", "-rf", "~root", "$(touch x)", "é" * 40, "a b"):
        store.pipe_file(f"{OUT}/{name}", b"mine")
    before = content(store)
    written({"x.txt": "x"}, overwrite=True)
    assert content(store) == before | {"x.txt": "x", "summary.json": "{"}


def test_an_earlier_summary_deletes_nothing_outside(store):
    store.pipe_file("memory://bucket/secret", b"s")
    text = b'{"schema": "cnnviz.x/1", "files": ["../secret", "/bucket/secret", "a.txt"]}'
    store.pipe_file(f"{OUT}/summary.json", text)
    store.pipe_file(f"{OUT}/a.txt", b"a")
    written({}, overwrite=True)
    assert store.cat_file("memory://bucket/secret") == b"s"
    assert content(store).keys() == {"summary.json"}


def test_what_is_too_large_for_the_disk_is_not_copied(store, monkeypatch):
    store.pipe_file(f"{OUT}/big", b"x" * 1000)
    monkeypatch.setattr("shutil.disk_usage", lambda _path: type("Disk", (), {"free": 1500}))
    with pytest.raises(CnnvizError, match="has 1,000 bytes, and only 1,500 are free"):
        written({}, overwrite=True)


def test_paths_are_shown_as_urls(store, tmp_path):
    folder = mirror("s3://bucket/a/")
    assert shown(folder / "b" / "c.png") == "s3://bucket/a/b/c.png"
    assert shown(tmp_path / "c.png") == str(tmp_path / "c.png")


def test_a_folder_that_is_opened_twice_is_uploaded_whole(store):
    """As `merge` does: it joins what the command then resumes."""
    written({"old.txt": "o"})
    folder = mirror(OUT)
    with uploading(folder):
        first = RunFolder.open(folder, overwrite=True)
        first.write_text("joined.txt", "j")
        del first
        second = RunFolder.open(folder, resume=True)
        second.write_text("a.txt", "a")
        second.finish(SUMMARY | {"files": second.files})
    assert content(store) == {"joined.txt": "j", "a.txt": "a", "summary.json": "{"}
