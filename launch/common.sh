# shellcheck shell=bash
# Functions of the launch scripts. Sourced by them, never run. Needs bash 3.2 (that of macOS) or newer.
#
# A script that sources it defines `usage` and calls `parse_options`; it runs every command through `run`.

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
SCRIPT=launch/$(basename "$0")
opt_dry_run=''

# say WORDS…: prints a line for the user.
say() { printf '%s\n' "$*" >&2; }

# fail MESSAGE: ends the script with status 2, as the program does on an error in its command line.
fail() {
  printf 'Error: %s\n' "$*" >&2
  exit 2
}

# quoted WORDS…: prints the words as one line, quoted for a shell.
quoted() {
  local word name line=''
  for word in "$@"; do
    name=''
    if [[ $word =~ ^(--[a-z_.-]+=)(.+)$ ]]; then
      name=${BASH_REMATCH[1]} word=${BASH_REMATCH[2]}
    fi
    if [[ ! $word =~ ^[][A-Za-z0-9_./:,@%+=~-]+$ || $word == [~]* || $word == *[][]* ]]; then
      word=\'$(printf '%s' "$word" | sed "s/'/'\\\\''/g")\'
    fi
    line+="${line:+ }$name$word"
  done
  printf '%s\n' "$line"
}

# run COMMAND…: prints a command (unless QUIET is set) and runs it; with --dry-run only prints it.
run() {
  if [[ $opt_dry_run ]]; then
    quoted "$@"
  else
    [[ ${QUIET:-} ]] || say "+ $(quoted "$@")"
    "$@"
  fi
}

# need TOOL MESSAGE: fails if a tool is not installed; a dry run needs none.
need() {
  [[ $opt_dry_run ]] || command -v "$1" >/dev/null || fail "$1 is not installed; $2, or see the commands with --dry-run."
}

# parse_options "VALUED…" "FLAGS…" "$@"
#
# Sets opt_<name> from --name=value for the names in VALUED, and opt_<name>=1 from --name for those in FLAGS (and --dry-run).
# Other words go to the array WORDS, words after -- to the array REST.
parse_options() {
  local valued=" $1 " flags=" $2 dry-run " word key
  shift 2
  WORDS=() REST=()
  while (($#)); do
    word=$1 key=${1#--}
    key=${key%%=*}
    shift
    case $word in
      --help | -h)
        usage
        exit 0
        ;;
      --)
        REST=("$@")
        return
        ;;
      --*=*)
        [[ $flags != *" $key "* ]] || fail "--$key takes no value."
        [[ $valued == *" $key "* ]] || fail "There is no option --$key; see $SCRIPT --help (the program's own go after --)."
        [[ ${word#*=} ]] || fail "--$key= has no value; give --$key=<value>."
        printf -v "opt_${key//-/_}" %s "${word#*=}"
        ;;
      -*)
        [[ $valued != *" $key "* ]] || fail "$word takes a value: $word=<value>."
        [[ $flags == *" $key "* ]] || fail "There is no option $word; see $SCRIPT --help (the program's own go after --)."
        printf -v "opt_${key//-/_}" 1
        ;;
      *) WORDS+=("$word") ;;
    esac
  done
}

# check_number NAME VALUE LEAST: fails unless VALUE is a whole number of at least LEAST.
check_number() {
  if [[ ! $2 =~ ^(0|[1-9][0-9]{0,8})$ ]] || (($2 < $3)); then fail "--$1=$2 is no whole number of at least $3."; fi
}

# check_program ARGUMENTS…: fails if these arguments of noisytwins_jax.main are not valid for a run on several hosts.
check_program() {
  local word config='' workdir=''
  for word in "$@"; do
    case $word in
      --config=*) config=1 ;;
      --workdir=*://*) fail "The program writes to mounted directories; mount the bucket and give its path, not ${word#*=}." ;;
      --workdir=*) workdir=1 ;;
      --coordinator* | --num_processes* | --process_id*) fail "$SCRIPT gives ${word%%=*} itself; leave it out." ;;
    esac
  done
  [[ $config ]] || fail "There is nothing to run; end with: -- --config=configs/<dataset>.py[:<method>] --workdir=<path>"
  [[ $workdir ]] || fail "Give the program --workdir=<path>, a directory that all machines share, so that any can resume."
}

# find_python: prints the interpreter to use: $PYTHON, else the checkout's virtual environment, else python3.
find_python() {
  if [[ ${PYTHON:-} ]]; then
    printf '%s\n' "$PYTHON"
  elif [[ -x $ROOT/.venv/bin/python ]]; then
    printf '%s\n' "$ROOT/.venv/bin/python"
  else
    printf 'python3\n'
  fi
}
