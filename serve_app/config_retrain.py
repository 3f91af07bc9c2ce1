"""`families.<name>.retrain`: when a temporal family is trained anew by itself, and by which program."""

from typing import Annotated

from pydantic import Field

from serve_app.config_part import Part
from serve_app.domain.retraining import RetrainRules


class RetrainConfig(Part):
    """Training by a job of Ray, one at a time. It runs on processor time that nobody else wants."""

    after_records: Annotated[int, Field(ge=1, description="new records after which a training starts")]
    min_interval_s: Annotated[float, Field(ge=0, description="seconds between two starts")] = 21_600.0
    timeout_s: Annotated[float, Field(gt=0, description="seconds after which a training is ended as failed")] = 14_400.0
    command: Annotated[
        tuple[str, ...],
        Field(description="program and arguments; default: training/retrain_and_reload.sh on the family's archive"),
    ] = ()
    options: Annotated[
        tuple[str, ...], Field(description="further arguments, such as --epochs 20 or --prediction-length 48")
    ] = ()
    working_dir: Annotated[
        str | None, Field(description="where it runs; default: the directory that holds the package serve_app")
    ] = None
    url: Annotated[
        str | None,
        Field(
            pattern=r"^https?://",
            description="where it asks for the reload; default: this server, on the node that trains",
        ),
    ] = None
    num_cpus: Annotated[
        float, Field(ge=0, description="CPUs that Ray reserves; little, for a job yields to everything else")
    ] = 0.1
    memory_bytes: Annotated[
        int, Field(ge=1 << 28, description="data that each of its processes may hold; 4 GiB train a hundred servers")
    ] = 4 << 30

    @property
    def rules(self) -> RetrainRules:
        """The same as the rules of trainings say it."""
        return RetrainRules(self.after_records, self.min_interval_s, self.timeout_s)
