"""The commands: what each is for, an example, and its arguments.

Nothing here imports torch, Ray or MLflow, so help and completion come at once; a command's work is
in the module of its name, imported when it runs.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import blocks.__main__
from ablate.cli.flags import add_flags
from ablate.cli.run_options import RunOptions
from ablate.tracking import DEFAULT_STORE


@dataclass(frozen=True, kw_only=True)
class Command:
    """A command of `ablate`."""

    summary: str
    """What it does, for the list of commands and as the first line of its help."""

    example: str
    """Its arguments in an example."""

    declare: Callable[[argparse.ArgumentParser], None]
    """Adds its arguments to its parser."""

    goes_on: bool = False
    """Whether the same command, after Ctrl-C, continues where it stopped."""


def _run(parser: argparse.ArgumentParser) -> None:
    add_flags(parser, RunOptions)


def _status(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("study", type=Path, metavar="STUDY", help="a study's directory")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def _report(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("study", type=Path, metavar="STUDY", help="a study's directory")
    parser.add_argument(
        "--json", action="store_true", help="print effects as JSON, and write nothing"
    )


def _compare(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("studies", type=Path, nargs=2, metavar="STUDY", help="a study's directory")
    parser.add_argument("--out", type=Path, metavar="DIR", help="write it here (default: print it)")


def _bundle(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("study", type=Path, metavar="STUDY", help="a study's directory")
    parser.add_argument("out", type=Path, metavar="OUT.zip", help="the file to write")


def _verify(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("bundle", type=Path, metavar="BUNDLE.zip")


def _sync(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("study", type=Path, metavar="STUDY", help="a study's directory")
    _add_store(parser)
    parser.add_argument(
        "--models",
        action=argparse.BooleanOptionalAction,
        help="copy trials' models too (default: those of at most 64 MiB)",
    )


def _ui(parser: argparse.ArgumentParser) -> None:
    _add_store(parser)
    parser.add_argument("--port", type=int, default=5000, help="on loopback only (default 5000)")


def _data(parser: argparse.ArgumentParser) -> None:
    tasks = parser.add_subparsers(dest="task", required=True, metavar="TASK")
    inspect = tasks.add_parser(
        "inspect",
        help="count a source's pairs, captions and problems",
        description="Count a source's pairs, captions and problems. Exit code 1: a study would "
        "refuse the source.",
        epilog="example: ablate data inspect embedded:icons --sheet icons.png",
    )
    inspect.add_argument("uri", metavar="URI", help="a source, as in docs/data.md")
    inspect.add_argument("--size", type=int, default=64, help="pixels of a side (default 64)")
    inspect.add_argument("--sheet", type=Path, metavar="PNG", help="write a contact sheet")
    inspect.add_argument("--json", action="store_true", help="print plain data for a program")
    pack = tasks.add_parser(
        "pack",
        help="resize a source into WebDataset shards",
        description="Resize a source into WebDataset shards. The same command again keeps those "
        "that are finished.",
        epilog="example: ablate data pack 'webdataset:/data/cc12m/{00000..01242}.tar' "
        "/data/cc12m-64 --size 64",
    )
    pack.add_argument("uri", metavar="URI", help="a source, as in docs/data.md")
    pack.add_argument("out", type=Path, metavar="OUT", help="a directory, new or half packed")
    pack.add_argument("--size", type=int, required=True, help="pixels of an image's side")
    pack.add_argument("--shard", type=int, default=1000, help="rows of a shard (default 1000)")


def _caption(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("images", nargs="+", metavar="IMAGE", type=Path, help="pictures")
    _add_checkpoint(parser)
    # The defaults of decoding depend on each other: the command knows what was not given.
    parser.add_argument("--beams", type=int, help="1: greedy (default 8, or 1 for draws)")
    parser.add_argument("--length-penalty", type=float, help="of beams (default 0.7)")
    parser.add_argument("--temperature", type=float, help="above 0: draw (default 0)")
    parser.add_argument(
        "--best-of", type=int, metavar="N", help="of N draws, the one that fits the picture best"
    )
    parser.add_argument("--top-k", type=int, help="draw among the k likeliest tokens")
    parser.add_argument("--top-p", type=float, help="draw within this probability")
    parser.add_argument("--minimum", type=int, help="tokens with the end mark (default 2)")
    parser.add_argument("--maximum", type=int, help="tokens (default: the context)")
    parser.add_argument("--seed", type=int, help="of draws (default 0)")
    parser.add_argument("--json", action="store_true", help="print one JSON object per picture")


def _score(parser: argparse.ArgumentParser) -> None:
    _add_checkpoint(parser)
    parser.add_argument("--data", metavar="URI", help="a source, as in docs/data.md")
    parser.add_argument("--split", help="train, val or test (default test)")
    parser.add_argument("--batch", type=int, help="of the contrastive loss (default 128)")
    parser.add_argument(
        "--zero-shot", type=Path, metavar="FOLDER", help="with FOLDER/CLASS_NAME/*.jpg"
    )
    parser.add_argument(
        "--template",
        action="append",
        metavar="TEXT",
        help="a prompt with {} for the class name; repeatable (default: an ensemble)",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def _convert(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("weights", type=Path, help=".safetensors, .bin or .pt: a state dict")
    parser.add_argument("out", type=Path, metavar="DIR", help="the checkpoint folder to write")
    parser.add_argument("--tokenizer", type=Path, required=True, metavar="tokenizer.json")
    parser.add_argument(
        "--correct-cls-mask", action="store_true", help="trained with open_clip's correct_cls_mask"
    )


def _add_store(parser: argparse.ArgumentParser) -> None:
    words = f"a store or a server (default {DEFAULT_STORE})"
    parser.add_argument("--mlflow", default=DEFAULT_STORE, metavar="URI", help=words)


def _add_checkpoint(parser: argparse.ArgumentParser) -> None:
    words = "a folder with config.json, model.safetensors and tokenizer.json"
    parser.add_argument("--checkpoint", required=True, type=Path, metavar="DIR", help=words)
    words = "register the blocks of a file or module; repeatable"
    parser.add_argument(
        "--plugin", action="append", default=[], metavar="FILE_OR_MODULE", help=words
    )


COMMANDS = {
    "run": Command(
        summary="plan, run or continue a study, and report",
        example="--grid full --seeds 5 --set lr=0.002 --plugin my_norm.py",
        declare=_run,
        goes_on=True,
    ),
    "status": Command(
        summary="show how far each trial of a study is; exit code 1: some trial has failed",
        example="studies/paper-nano",
        declare=_status,
    ),
    "report": Command(
        summary="make a study's report and figures from its ledger, without data or plugins",
        example="studies/full-nano",
        declare=_report,
    ),
    "compare": Command(
        summary="compare the effects of two studies, and pool them if they are one experiment",
        example="studies/a studies/b --out comparison",
        declare=_compare,
    ),
    "bundle": Command(
        summary="pack a study to hand over: plan, ledger, environment, report; no weights",
        example="studies/full-nano full-nano.zip",
        declare=_bundle,
    ),
    "verify": Command(
        summary="check a bundle: recompute its report from its ledger",
        example="full-nano.zip",
        declare=_verify,
    ),
    "sync": Command(
        summary="bring an MLflow store up to date from a study's ledger, which is the record",
        example="studies/full-nano --mlflow http://127.0.0.1:5000",
        declare=_sync,
        goes_on=True,
    ),
    "ui": Command(
        summary="open the MLflow UI on loopback, with links to the latest studies",
        example="--port 5001",
        declare=_ui,
    ),
    "data": Command(
        summary="look at a data set, or pack it into shards of small images",
        example="inspect embedded:icons --sheet icons.png",
        declare=_data,
        goes_on=True,
    ),
    "caption": Command(
        summary="caption pictures with a checkpoint",
        example="--checkpoint studies/full-nano/trials/grr-seed0-1a2b3c4d/model cat.png --beams 4",
        declare=_caption,
    ),
    "score": Command(
        summary="score a checkpoint on a data set, or at naming the classes of a folder",
        example="--checkpoint MODEL --data embedded:icons",
        declare=_score,
    ),
    "convert": Command(
        summary="turn the weights of an open_clip coca_ViT-* into a checkpoint folder",
        example="open_clip_pytorch_model.bin coca-b32 --tokenizer clip/tokenizer.json",
        declare=_convert,
    ),
    "blocks": Command(
        summary="browse the block library, check blocks, start a new one",
        example="show position/rope",
        declare=blocks.__main__.add_arguments,
    ),
}
