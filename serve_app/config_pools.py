"""The pools of a family: replicas on one kind of hardware, and what their memory holds."""

from typing import Annotated, Literal

from pydantic import Field

from serve_app.config_part import Name, Part
from serve_app.domain.residency import ResidencyPolicy


class PoolConfig(Part):
    """One deployment of a family: replicas on one kind of hardware, named `<family>-<name>`."""

    name: Name = "cpu"
    num_replicas: Annotated[int, Field(ge=1, description="replicas; 1, since on 2 cores one gave more than two")] = 1
    num_cpus: Annotated[
        float, Field(ge=0, description="CPUs that Ray reserves for a replica; 0.5 packs a small node")
    ] = 0.5
    num_gpus: Annotated[
        float,
        Field(ge=0, description="GPUs (may be a fraction) reserved for a replica; none where the cluster has no GPU"),
    ] = 0.0
    device: Annotated[
        Literal["cpu", "cuda", "auto"],
        Field(description="where models run; auto: cuda with num_gpus, else cpu. Without CUDA it is cpu, and says so"),
    ] = "auto"
    precision: Annotated[
        Literal["float32", "tf32", "bf16"],
        Field(description="of products of matrices on cuda; answers are float32, and so is all else, and all on a cpu"),
    ] = "float32"

    @property
    def wants_cuda(self) -> bool:
        """True when models are to run on a GPU."""
        return self.device == "cuda" or (self.device == "auto" and self.num_gpus > 0)


class ResidencyConfig(Part):
    """How many versions stay in a replica's memory. Active, last good and candidate never count as surplus."""

    max_versions: Annotated[int, Field(ge=1, description="versions (S4: MODEL_CACHE_SIZE)")] = 5
    max_bytes: Annotated[int | None, Field(gt=0, description="bytes of artifacts; none: only versions count")] = None
    policy: Annotated[
        ResidencyPolicy,
        Field(
            description="what a candidate that fits neither into the GPU's free memory nor, where this is "
            "resource_preserving, into max_bytes does: availability_preserving refuses it, the active version goes "
            "on; resource_preserving unloads first, half of the replicas before the commit and half after it, and a "
            "single replica answers 503 with Retry-After while it loads"
        ),
    ] = ResidencyPolicy.AVAILABILITY_PRESERVING
