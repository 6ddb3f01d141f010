"""docs/tour.ipynb runs, and results display themselves in it."""

from pathlib import Path

import pytest

from cnnviz.core import load_model, read_image
from cnnviz.filters import feature_maps, kernel_stats
from cnnviz.gradients import SaliencySpec, saliency
from cnnviz.occlusion import OcclusionSpec, occlude

ROOT = Path(__file__).parent.parent.parent
TOUR = ROOT / "docs" / "tour.ipynb"
PNG = b"\x89PNG"


@pytest.mark.needs("nbclient", "ipykernel")
def test_the_tour_runs_and_its_results_are_shown_as_figures(tmp_path, monkeypatch):
    import nbformat
    from nbclient import NotebookClient

    monkeypatch.setenv("JUPYTER_PLATFORM_DIRS", "1")
    for name in ("JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR", "IPYTHONDIR"):
        monkeypatch.setenv(name, str(tmp_path))
    notebook = nbformat.read(TOUR, as_version=4)
    assert all(not cell.outputs for cell in notebook.cells if cell.cell_type == "code")
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(ROOT)}}).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    figures = [output for output in outputs if "image/png" in output.get("data", {})]
    assert len(figures) == 6
    assert not [output for output in outputs if output.get("name") == "stderr"]


@pytest.fixture(scope="module")
def shown():
    model = load_model("bundled", device="cpu")
    image = read_image(ROOT / "sample_images" / "truck.png", model.preprocess)
    return {
        "occlusion": occlude(model, image, OcclusionSpec(masks=((16, 16),), stride=16)),
        "saliency": saliency(model, image, SaliencySpec()),
        "kernels": kernel_stats(model, "first")[0],
        "activations": feature_maps(model, image, ["stem.conv"]),
    }


@pytest.mark.parametrize("name", ["occlusion", "saliency", "kernels", "activations"])
def test_a_result_is_a_picture_in_a_notebook(name, shown):
    assert shown[name]._repr_png_().startswith(PNG)
