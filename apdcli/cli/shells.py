"""The scripts that make bash, zsh, fish and PowerShell ask `apd` what the Tab key offers.

Each hands over the words up to the cursor and shows the lines that come back; see `complete`.
Knows no candidate.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from apdcli.errors import OutputError, UsageError, reason

_BASH = r"""# apd completion for bash
_apd_complete() {
    local IFS=$'\n' lines
    if ! lines=$(COMP_WORDS="${COMP_WORDS[*]}" COMP_CWORD=$COMP_CWORD _APD_COMPLETE=complete_bash \
        "$1" 2>/dev/null); then
        compopt +o default 2>/dev/null
        return
    fi
    set -o noglob
    COMPREPLY=($lines)
    set +o noglob
    if [[ ${#COMPREPLY[@]} -eq 1 && ${COMPREPLY[0]} == *= ]]; then
        compopt -o nospace 2>/dev/null
    fi
}
complete -o default -F _apd_complete apd
"""
_ZSH = r"""#compdef apd
_apd_complete() {
    local text
    local -a lines
    text=$(COMP_WORDS="${(F)words[1,CURRENT]}" COMP_CWORD=$((CURRENT - 1)) \
        _APD_COMPLETE=complete_zsh $words[1] 2>/dev/null) || return 1
    lines=(${(f)text})
    if (( ! $#lines )); then
        _files
        return
    fi
    local -a open=(${(M)lines:#[^:]#=(|:*)}) closed
    closed=(${lines:|open})
    (( $#closed )) && _describe -V apd closed
    (( $#open )) && _describe -V apd open -S ''
}
(( $+functions[compdef] )) || { autoload -Uz compinit && compinit; }
compdef _apd_complete apd
"""
_FISH = r"""# apd completion for fish
function __apd_complete
    set -l words (commandline -opc) (commandline -ct)
    set -l place (math (count $words) - 1)
    set -l lines (env COMP_WORDS=(string join -- \n $words | string collect) COMP_CWORD=$place \
        _APD_COMPLETE=complete_fish $words[1] 2>/dev/null)
    or return
    if test (count $lines) -eq 0
        __fish_complete_path (commandline -ct)
    else
        printf '%s\n' $lines
    end
end
complete --command apd --no-files --arguments '(__apd_complete)'
"""
_POWERSHELL = r"""# apd completion for PowerShell
Register-ArgumentCompleter -Native -CommandName apd -ScriptBlock {
    param($wordToComplete, $commandAst, $cursorPosition)
    $words = @($commandAst.CommandElements |
        Where-Object { $_.Extent.StartOffset -lt $cursorPosition } |
        ForEach-Object {
            $plain = $_ -is [System.Management.Automation.Language.StringConstantExpressionAst]
            $text = if ($plain) { $_.Value } else { $_.Extent.Text }
            $text -replace '\r?\n', ' '
        })
    if (-not $wordToComplete) { $words += '' }
    $program = $commandAst.GetCommandName()
    # under strict mode it is an error to read what no program has set yet
    $status = Get-Variable LASTEXITCODE -Scope Global -ValueOnly -ErrorAction Ignore
    $PSNativeCommandUseErrorActionPreference = $false
    $encoding = [Console]::OutputEncoding
    try { [Console]::OutputEncoding = [System.Text.UTF8Encoding]::new($false) } catch { }
    try {
        $env:COMP_WORDS = $words -join "`n"
        $env:COMP_CWORD = $words.Count - 1
        $env:_APD_COMPLETE = 'complete_powershell'
        $lines = @(& $program 2>$null)
        if ($LASTEXITCODE -ne 0) { return '' }  # no candidate, and no file name either
        foreach ($line in $lines) {
            $value, $help = $line -split "`t", 2
            if (-not $value) { continue }
            if (-not $help) { $help = $value }
            $typed = $value
            if ($value -notmatch '^[\w./:=+-]+$') { $typed = "'" + $value.Replace("'", "''") + "'" }
            [System.Management.Automation.CompletionResult]::new(
                $typed, $value, 'ParameterValue', $help)
        }
    } finally {
        $env:COMP_WORDS = $env:COMP_CWORD = $env:_APD_COMPLETE = $null
        try { [Console]::OutputEncoding = $encoding } catch { }  # a host may have no console
        $global:LASTEXITCODE = $status
    }
}
"""


@dataclass(frozen=True)
class Shell:
    """A shell that can complete.

    Attributes:
        script: what it has to read.
        home: where the script goes, from the environment.
        start: the file it reads when it starts, which has to name the script; None where a script
            in `home` is found by itself.
        naming: the line in `start`.
    """

    script: str
    home: Callable[[Mapping[str, str]], Path]
    start: Callable[[Mapping[str, str]], Path] | None = None
    naming: str = ""


def _user(environ: Mapping[str, str]) -> Path:
    return Path(environ.get("HOME") or Path.home())


def _data(environ: Mapping[str, str]) -> Path:
    own = environ.get("XDG_DATA_HOME")
    return (Path(own) if own else _user(environ) / ".local" / "share") / "apd"


def _config(environ: Mapping[str, str]) -> Path:
    own = environ.get("XDG_CONFIG_HOME")
    return Path(own) if own else _user(environ) / ".config"


def _zsh_start(environ: Mapping[str, str]) -> Path:
    return Path(environ.get("ZDOTDIR") or _user(environ)) / ".zshrc"


def _powershell_start(environ: Mapping[str, str]) -> Path:
    """Only PowerShell itself knows where its profile is."""
    command = ("-NoProfile", "-NonInteractive", "-Command", "$PROFILE.CurrentUserAllHosts")
    for name in ("pwsh", "powershell"):
        try:
            done = subprocess.run([name, *command], capture_output=True, text=True, check=True)
        except (OSError, subprocess.CalledProcessError):
            continue
        if done.stdout.strip():
            return Path(done.stdout.strip())
    raise OutputError(
        "PowerShell cannot be asked for its profile; put this into it by hand: "
        "apd --show-completion powershell | Out-String | Invoke-Expression"
    )


SHELLS: dict[str, Shell] = {
    "bash": Shell(
        _BASH,
        lambda environ: _data(environ) / "completion.bash",
        lambda environ: _user(environ) / ".bashrc",
        "[ -r '{0}' ] && . '{0}'  # apd completion",
    ),
    "zsh": Shell(
        _ZSH,
        lambda environ: _data(environ) / "completion.zsh",
        _zsh_start,
        "[ -r '{0}' ] && . '{0}'  # apd completion",
    ),
    "fish": Shell(_FISH, lambda environ: _config(environ) / "fish" / "completions" / "apd.fish"),
    "powershell": Shell(
        _POWERSHELL,
        lambda environ: _powershell_start(environ).with_name("apd-completion.ps1"),
        _powershell_start,
        "if (Test-Path '{0}') {{ . '{0}' }}  # apd completion",
    ),
}


def script(shell: str) -> str:
    """The script for a shell.

    Raises:
        UsageError: it is none that can be completed in.
    """
    shell = {"pwsh": "powershell"}.get(shell, shell)
    if shell not in SHELLS:
        raise UsageError(f"no completion for {shell!r}; there is: {', '.join(SHELLS)}")
    return SHELLS[shell].script


def install(name: str, environ: Mapping[str, str]) -> list[Path]:
    """Write a shell's script where it finds it, and see that it is read at its start.

    Does nothing that is done already. Returns the files that it wrote or changed.

    Raises:
        UsageError: no such shell. OutputError: a file cannot be written.
    """
    text = script(name)
    shell = SHELLS[{"pwsh": "powershell"}.get(name, name)]
    written: list[Path] = []
    home = target = shell.home(environ)
    try:
        if not home.is_file() or home.read_bytes() != text.encode():
            home.parent.mkdir(parents=True, exist_ok=True)
            home.write_bytes(text.encode())
            written.append(home)
        if shell.start is not None:
            start = target = shell.start(environ)
            quoted = str(home).replace("'", "''" if shell.script is _POWERSHELL else "'\\''")
            line = shell.naming.format(quoted)
            before = start.read_bytes() if start.exists() else b""
            if line.encode() not in before.splitlines():
                start.parent.mkdir(parents=True, exist_ok=True)
                gap = b"" if before.endswith(b"\n") or not before else b"\n"
                with start.open("ab") as file:  # what the user has there is never rewritten
                    file.write(gap + line.encode() + b"\n")
                written.append(start)
    except OSError as error:
        raise OutputError(f"cannot write {target}: {reason(error)}") from error
    return written


def current_shell(environ: Mapping[str, str]) -> str:
    """The shell that started us, else the user's own.

    Raises:
        UsageError: it is none that can be completed in.
    """
    try:
        command = ["ps", "-o", "comm=", "-p", str(os.getppid())]
        parent = subprocess.run(command, capture_output=True, text=True, check=False).stdout
    except OSError:  # Windows has no ps, and its shell is PowerShell
        parent = "powershell" if os.name == "nt" else ""
    for path in (parent, environ.get("SHELL", "")):
        name = Path(path.strip().lstrip("-")).name.removesuffix(".exe")
        if name in (*SHELLS, "pwsh"):
            return name
    raise UsageError(f"which shell? Name it: apd --install-completion {'|'.join(SHELLS)}")
