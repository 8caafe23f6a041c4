"""Build hook: what is made when netnsfs is built.

- completions for bash, zsh and fish, from the parser of the command line;
- the programs for the kernel, with clang. Without it, netnsfs asks /proc instead;
- the program that NAME/exec leads to, with cc. Without it, there is no NAME/exec.
"""

import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path
from typing import Any

import shtab
from hatchling.builders.hooks.plugin.interface import BuildHookInterface

TARGETS = {
    "bash": "share/bash-completion/completions/netnsfs",
    "zsh": "share/zsh/site-functions/_netnsfs",
    "fish": "share/fish/vendor_completions.d/netnsfs.fish",
}

# What follows -o is a list with commas, of which the last word is to be completed.
BASH = """
_netnsfs_options() {{
  local before=
  [[ $1 != *,* ]] || before="${{1%,*}},"
  compgen -P "$before" -W "{names}" -- "${{1##*,}}"
}}
"""
ZSH = """
_netnsfs_options() {{
  _values -s , 'mount option' {names}
}}
"""
FISH = """
function _netnsfs_options
  set -l before (string replace -r '[^,]*$' '' -- (commandline -ct))
  printf "$before%s\\n" {names}
end
"""


SOURCES = "netnsfs/data"
OBJECTS = "netnsfs/netns"
PROGRAM = "netns-exec"
# It has no C library, and must have no relocations. With registers other than the general ones,
# the compiler makes tables of addresses.
PROGRAM_FLAGS = (
    *("-Os", "-Wall", "-ffreestanding", "-nostdlib", "-static-pie", "-fPIE"),
    *("-fno-stack-protector", "-mgeneral-regs-only"),
)


class Hook(BuildHookInterface):  # type: ignore[type-arg]
    """Adds the completions and the programs to a wheel, and the programs to the checkout."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Make the files, and have them taken into the wheel.

        Args:
            version: of the target.
            build_data: what the wheel is built from.
        """
        self._files = tempfile.TemporaryDirectory()
        objects, program = self._compile(), self._compile_program()
        if program:
            build_data["shared_data"][str(program)] = f"lib/netnsfs/{PROGRAM}"
        if objects or program:
            # For this machine's byte order and processor: no wheel for any machine.
            build_data["pure_python"] = False
            build_data["tag"] = f"py3-none-{_platform()}"
        sys.path.insert(0, self.root)
        for shell, target in TARGETS.items():
            path = Path(self._files.name, shell)
            path.write_text(_script(shell))
            build_data["shared_data"][str(path)] = target

    def _compile(self) -> bool:
        sources = Path(self.root, SOURCES).glob("*.bpf.c")
        compiled = [self._compile_file(source) for source in sources]
        if not all(compiled):
            message = "clang and libbpf-dev are missing: members will be looked for in /proc"
            self.app.display_warning(message)
        return any(compiled)

    def _compile_file(self, source: Path) -> bool:
        target = Path(self.root, OBJECTS, source.name).with_suffix(".o")
        target.unlink(missing_ok=True)
        command = ["clang", "-target", "bpf", "-O2", "-g", "-Wall", "-Werror"]
        if not shutil.which("clang"):
            return False
        return not subprocess.run(
            [*command, "-c", source, "-o", target], check=False
        ).returncode

    def _compile_program(self) -> Path | None:
        source = Path(self.root, SOURCES, f"{PROGRAM}.c")
        target = Path(self._files.name, PROGRAM)
        command = ["cc", *PROGRAM_FLAGS, "-o", str(target), str(source)]
        if not shutil.which("cc") or subprocess.run(command, check=False).returncode:
            self.app.display_warning("no C compiler, or an unknown processor: no NAME/exec")
            return None
        return target

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        """Remove them again.

        Args:
            version: of the target.
            build_data: what the wheel was built from.
            artifact_path: the wheel.
        """
        self._files.cleanup()


def _platform() -> str:
    return sysconfig.get_platform().replace("-", "_").replace(".", "_")


def _script(shell: str) -> str:
    from netnsfs import cli

    parser = cli.make_parser()
    for action in parser._actions:
        if action.dest == "options":
            action.complete = _mount_options(cli)  # type: ignore[attr-defined]
            # A list of all of them is in the manual page.
            action.help = "mount options"
        elif action.dest == "paths":
            action.complete = shtab.DIRECTORY  # type: ignore[attr-defined]
    return str(shtab.complete(parser, shell))


def _mount_options(cli: Any) -> dict[str, Any]:
    words = " ".join([*cli.FLAGS, *(f"{name}=" for name in cli.OPTIONS)])
    values = " ".join([*cli.FLAGS, *(f"'{name}:value:_files -/'" for name in cli.OPTIONS)])
    preamble = {
        "bash": BASH.format(names=words),
        "zsh": ZSH.format(names=values),
        "fish": FISH.format(names=words),
    }
    used = {"bash": "_netnsfs_options", "zsh": "_netnsfs_options", "fish": "(_netnsfs_options)"}
    return {**used, "preamble": preamble}
