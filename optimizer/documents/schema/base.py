"""What all schemas share: strictness, and the types of names, words and numbers.

A field's description says in a few words what belongs there; faults about a missing field quote it.
"""

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic_core import PydanticCustomError, core_schema

MOST = 1_000_000_000  # no count or quantity of a fleet is larger


class Strict(BaseModel):
    """Unknown fields are faults, and no text is read as a number."""

    model_config = ConfigDict(
        extra="forbid",
        strict=True,
        defer_build=True,
        allow_inf_nan=False,
        populate_by_name=False,
    )


class Head(Strict):
    """The two fields every document starts with."""

    kind: str = Field(description="the kind of the document, such as Fleet")
    version: Literal[1] = Field(description="version: 1")


@dataclass(frozen=True, slots=True)
class Choice:
    """The type of a word out of a few; with ``prefix``, of ``prefix:anything`` too."""

    what: str
    words: tuple[str, ...]
    prefix: str | None = None

    def check(self, value: str) -> str:
        """The word itself. Raises the fault ``choice``, which names the words."""
        if value in self.words or (self.prefix and value.startswith(self.prefix)):
            return value
        raise PydanticCustomError("choice", "{what}", {"what": self.what, "words": self.words})

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> core_schema.CoreSchema:
        return core_schema.no_info_after_validator_function(self.check, handler(source))

    def __get_pydantic_json_schema__(
        self, schema: core_schema.CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        words: dict[str, Any] = {"enum": list(self.words)}
        if self.prefix is None:
            return {"type": "string", **words}
        return {"anyOf": [words, {"type": "string", "pattern": f"^{self.prefix}.+"}]}


Text = Annotated[str, Field(min_length=1, max_length=500, pattern=r"^\S(.*\S)?$")]
# Names appear in ids (name/0), in paths (deployments.NAME.slo) and on command lines.
Name = Annotated[str, Field(min_length=1, max_length=200, pattern=r"^\w[\w.:@+\-]*$")]
GpuId = Annotated[str, Field(pattern=r"^\w[\w.:@+\-]*/[0-9]+$")]
ReplicaId = Annotated[str, Field(pattern=r"^\w[\w.:@+\-]*/[0-9]+$")]

Count = Annotated[int, Field(ge=0, le=MOST)]
Several = Annotated[int, Field(gt=0, le=MOST)]
Amount = Annotated[float, Field(ge=0, le=MOST)]
Positive = Annotated[float, Field(gt=0, le=MOST)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Part = Annotated[float, Field(gt=0, le=1)]

SHARING = ("mig", "whole", "shared")
PRECISIONS = (
    *("fp32", "fp16", "bf16", "fp8", "int8", "w8a16", "int4", "w4a8"),
    *("nvfp4", "mxfp4", "bnb-nf4", "int2"),
)
KV_PRECISIONS = ("bf16", "fp16", "fp8", "int8", "int4", "kivi-2bit", "kvmix", "recent-16bit")
Sharing = Annotated[str, Choice("way of sharing", SHARING)]
Precision = Annotated[str, Choice("precision", PRECISIONS, prefix="gguf:")]
KvPrecision = Annotated[str, Choice("KV precision", KV_PRECISIONS)]


class Profile(Strict):
    """A MIG instance: a profile and the memory slice where it starts."""

    profile: Text = Field(description="a MIG profile such as 3g.40gb")
    start: Annotated[int, Field(ge=0, le=63)] = Field(
        description="the memory slice where the instance starts"
    )
