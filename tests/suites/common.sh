# What the suites share that go on where they were stopped; sourced, in the repository.
# tried PATH...: a name of what is tried: the programs as they are installed, the test bed, and these files of the last commit.
# Empty where one of them is not as it was committed.
tried() {
  [ -n "$(git status --porcelain -- tests/testbed tests/suites/common.sh "$@")" ] || {
    git ls-tree -r HEAD -- tests/testbed tests/suites/common.sh "$@"
    find target/testbed-root -type f -print0 | sort -z | xargs -0 sha256sum
  } | sha256sum | cut -c1-16
}
# is_for STATE KEY: whether the directory STATE was begun with this key; makes it anew, where it was not, or where KEY is
# empty.
is_for() {
  if [ -n "$2" ] && [ "$(cat "$1/of" 2>/dev/null)" = "$2" ]; then return 0; fi
  rm -rf "$1"; mkdir -p "$1"; echo "$2" >"$1/of"; return 1
}
# How many beds this machine has room for at once.
beds=2
if [ "$(nproc)" -lt 2 ] || [ "$(awk '/^MemAvailable:/ {print int($2 / 1024)}' /proc/meminfo)" -lt 12000 ]; then beds=1; fi
# side_by_side COMMAND...: the command once for each of the $beds, its number, from 1 on, added: all at once, and what the
# first says is shown as it comes. The others write to out-N in the directory $logs. Returns 1 if one fails.
side_by_side() {
  local bed status=0 others=()
  for bed in $(seq 2 "$beds"); do
    "$@" "$bed" >"$logs/out-$bed" 2>&1 & others+=($!)
  done
  # And what they run.
  trap 'for other in "${others[@]}"; do kill "$other" $(cat "/proc/$other/task/$other/children"); done 2>/dev/null; exit 130' INT TERM
  "$@" 1 || status=1
  for bed in "${others[@]}"; do wait "$bed" || status=1; done
  trap - INT TERM
  for bed in $(seq 2 $((${#others[@]} + 1))); do echo "bed $bed:"; cat "$logs/out-$bed"; done
  return $status
}
