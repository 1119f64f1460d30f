"""How a command's help is laid out: options under the heading of their group, then examples to copy."""

from __future__ import annotations

from typing import Any

from typer.core import TyperCommand

from nearfar.io.stores import address_of

EXAMPLES = {
    "anonymize": ("nearfar anonymize photos near --strength 0.35", "nearfar anonymize photos near --resume"),
    "calibrate": ("nearfar calibrate photos --target rank1=0.2", "nearfar calibrate photos --target similarity=0.3"),
    "audit": ("nearfar audit photos near", "nearfar audit photos near --fail-if 'rank1>0.2'"),
    "augment": ("nearfar augment train more --copies 4", "nearfar augment train more --copies 2 --seed 1"),
    "enhance": ("nearfar enhance small large --scale 4", "nearfar enhance small large --scale 2 --steps 40"),
    "evolve": (
        "nearfar evolve private synthetic --count 500 --epsilon 2",
        "nearfar evolve private synthetic --count 500 --epsilon 1 --by classes",
    ),
    "reconstruct": ("nearfar reconstruct photos again", "nearfar reconstruct photos again --strength 0.5"),
    "invert": ("nearfar invert photos latents", "nearfar invert photos latents --strength 0.5"),
    "serve": ("nearfar serve", "nearfar serve --folder photos --folder near"),
    "demo": ("nearfar demo", "nearfar demo pictures"),
    "fit": ("nearfar domain fit cells cells.domain", "nearfar domain fit cells cells.domain --survey"),
    "survey": ("nearfar domain survey cells", "nearfar domain survey cells --report survey.html"),
    "inspect": ("nearfar domain inspect cells.domain", "nearfar domain inspect cells.domain --json"),
    "sample": (
        "nearfar domain sample cells.domain new --count 100",
        "nearfar domain sample cells.domain new --count 100 --seed 1",
    ),
    "plan": (
        "nearfar plan anonymize photos near --shards 512 -o job.json",
        "nearfar plan enhance s3://bucket/small s3://bucket/large --shards 64 -o job.json",
    ),
    "work": ("nearfar work job.json --workers 2", "nearfar work job.json --engine ray"),
    "status": ("nearfar status job.json", "nearfar status job.json --json"),
    "merge": ("nearfar merge job.json", "nearfar merge job.json --json"),
    "slurm": ("nearfar slurm job.json", "nearfar slurm job.json --tasks 64"),
    "convert": ("nearfar models convert afhqdog_p2.pt afhq", "nearfar models convert --help"),
    "fetch": (
        "nearfar models fetch google/ddpm-cifar10-32",
        "nearfar models fetch owner/name --revision 0123456789abcdef0123456789abcdef01234567",
    ),
    "profile": ("nearfar models profile --model afhq", "nearfar models profile --model afhq --count 128"),
}


IN_SHARDS = ("anonymize", "augment", "enhance", "reconstruct", "invert")
"""Commands whose IN and OUT may be URLs, and whose work may be cut into shards."""


class Grouped(TyperCommand):
    """A command whose help has headings and examples, in plain text; to or from a URL it is a job of shards."""

    def invoke(self, ctx: Any) -> Any:
        places = {name: address_of(str(ctx.params.get(name))) for name in ("source", "out")}
        if ctx.command.name not in IN_SHARDS or not any(places.values()):
            return super().invoke(ctx)
        from nearfar.cli.work import run_at

        return run_at(ctx)

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        """IN and OUT as they are named below, without braces."""
        return [piece.replace("{", "").replace("}", "") for piece in super().collect_usage_pieces(ctx)]

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Arguments, then each group of options under its heading, in the order of their first options."""
        groups: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is not None:
                argument = parameter.param_type_name == "argument"
                panel = getattr(parameter, "rich_help_panel", None) or "Options"
                groups.setdefault("Arguments" if argument else panel, []).append(record)
        for heading, records in groups.items():
            with formatter.section(heading):
                formatter.write_dl(records)

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        with formatter.section("Examples"):
            for example in EXAMPLES.get(ctx.info_name, ()):
                formatter.write(f"{' ' * formatter.current_indent}{example}\n")
