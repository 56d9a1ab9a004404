"""NVIDIA GPUs that programs are compiled for without one: XLA's target configurations, from public figures.

XLA compiles for a GPU that is not here if it is told what the GPU is. A target configuration is a text in the format of
XLA's protocol buffer `GpuTargetConfigProto`. The figures are those of NVIDIA's architecture white papers and of
`nvidia-smi` and `cudaGetDeviceProperties` on each GPU.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

from mossa_jax.devices.chips import GPUS

# Version of cuDNN, 9.10.0, as it gives it itself.
_CUDNN = 91000


@dataclass(frozen=True)
class Target:
    """What a compiler must know of a GPU beside its memory and bandwidth, which `devices.chips` has.

    Attributes:
      name: as its driver reports it.
      capability: major CUDA compute capability; the minor one is 0 for all of these.
      cores: the number of streaming multiprocessors.
      units: float32 units per multiprocessor.
      shared_memory: KiB per multiprocessor; a block may take all but one of them.
      cache: KiB of the second-level cache.
      clock: GHz, at most.
      links: the number of NVLink connections.
    """

    name: str
    capability: int
    cores: int
    units: int
    shared_memory: int
    cache: int
    clock: float
    links: int


TARGETS = {
    "a100-40": Target("NVIDIA A100-SXM4-40GB", 8, 108, 64, 164, 40_960, 1.41, 12),
    "a100": Target("NVIDIA A100-SXM4-80GB", 8, 108, 64, 164, 40_960, 1.41, 12),
    "h100": Target("NVIDIA H100 80GB HBM3", 9, 132, 128, 228, 51_200, 1.98, 18),
    "h200": Target("NVIDIA H200", 9, 132, 128, 228, 51_200, 1.98, 18),
    "b200": Target("NVIDIA B200", 10, 148, 128, 228, 129_536, 1.965, 18),
}


def target_config(name: str) -> str:
    """Returns XLA's target configuration of a GPU.

    Args:
      name: one of `chips.GPUS`.
    """
    chip, target = GPUS[name], TARGETS[name]
    # Hopper and Blackwell have instructions that only code for exactly this capability may use, as in sm_90a.
    extension = "ACCELERATED_FEATURES" if target.capability >= 9 else "NONE"
    return f"""\
gpu_device_info {{
  name: "{target.name}"
  device_vendor: "NVIDIA Corporation"
  cuda_compute_capability {{ major: {target.capability} feature_extension: {extension} }}
  core_count: {target.cores}
  fpus_per_core: {target.units}
  clock_rate_ghz: {target.clock}
  device_memory_size: {int(chip.memory * 2**30)}
  memory_bandwidth: {int(chip.bandwidth)}
  l2_cache_size: {1024 * target.cache}
  shared_memory_per_core: {1024 * target.shared_memory}
  shared_memory_per_block_optin: {1024 * (target.shared_memory - 1)}
  shared_memory_per_block: 49152
  pcie_bandwidth: {32 * 2**30 if target.capability < 10 else 64 * 2**30}
  device_interconnect_info {{ active_links: {target.links} }}
  threads_per_warp: 32
  threads_per_block_limit: 1024
  threads_per_core_limit: 2048
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
  thread_dim_limit_x: 1024
  thread_dim_limit_y: 1024
  thread_dim_limit_z: 64
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  device_address_bits: 64
  driver_version: "13.0.0"
  runtime_version: "12.8.0"
  compile_time_toolkit_version: "12.8.0"
  dnn_version: "9.10.0"
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 10 patch: 0 }}
runtime_version {{ major: 12 minor: 8 patch: 0 }}
device_description_str: "{target.name}"
"""


@contextlib.contextmanager
def cudnn_of_targets() -> Iterator[None]:
    """Lowers calls of cuDNN as for the version that target configurations name, on a machine that has none.

    JAX asks the installed library for its version before it lowers such a call, also if the call is for a GPU that is
    not here. The library itself is not needed: the call stays a call in the compiled program.
    """
    try:
        from jax._src.cudnn import fused_attention_stablehlo as calls
    except ImportError:
        # Another version of JAX, which has the check elsewhere.
        yield
        return
    check = calls.check_cudnn_version

    def version() -> int:
        try:
            return check()
        except RuntimeError:
            return _CUDNN

    setattr(calls, "check_cudnn_version", version)  # noqa: B010  # a module's function, which types do not let us replace
    try:
        yield
    finally:
        setattr(calls, "check_cudnn_version", check)  # noqa: B010
