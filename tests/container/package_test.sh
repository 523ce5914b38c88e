#!/usr/bin/env bash
# package_test.sh ARCHIVE: unpacks it into a root that has the C library and
# nothing else, and runs it there without network: the program answers, serves,
# says that there is no GPU. Needs a machine that may make user namespaces.
set -euo pipefail
archive=$1
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir -p "$work"/{lib64,lib/x86_64-linux-gnu,opt,proc,tmp,dev}
for library in ld-linux-x86-64.so.2 libc.so.6 libm.so.6 libdl.so.2 librt.so.1 \
  libpthread.so.0 libresolv.so.2; do
  cp -L "/lib/x86_64-linux-gnu/$library" "$work/lib/x86_64-linux-gnu/"
done
ln -s /lib/x86_64-linux-gnu/ld-linux-x86-64.so.2 "$work/lib64/"
tar -C "$work/opt" --strip-components=1 -xzf "$archive"

# An own user and network; only this root. The loader finds libraries beside a
# program through /proc.
run() {
  unshare --user --map-root-user --net --mount bash -c \
    'mount --rbind /proc "$0/proc" && exec chroot "$0" "$@"' \
    "$work" /opt/bin/"$@"
}
fail() {
  echo "package_test: $*" >&2
  exit 1
}
run quire --version | grep -q '^quire ' || fail "--version"
answer=$(run quire generate --chat --temperature 0 --prompt "What is 7 + 5?" \
  --device cpu) || fail "generate"
[[ $answer == *12* ]] || fail "7 + 5 is not $answer"
# auto is the CPU, and says so in one line.
run quire generate --max-tokens 1 --prompt Hi >/dev/null 2>"$work/error" ||
  fail "generate on auto"
grep -q 'computing on the CPU' "$work/error" || fail "$(cat "$work/error")"
code=0
run quire generate --device cuda --max-tokens 1 --prompt Hi >/dev/null \
  2>"$work/error" || code=$?
((code == 69)) && (($(wc -l <"$work/error") == 1)) ||
  fail "--device cuda: exit code $code, $(cat "$work/error")"
if [[ -x $work/opt/bin/wrapper_check_emulated ]]; then
  run wrapper_check_emulated --write /tmp/wrappers &&
    run wrapper_check_emulated --compare /tmp/wrappers | tail -1 ||
    fail "wrapper_check_emulated"
  code=0
  run wrapper_check_gpu --compare /tmp/wrappers 2>/dev/null || code=$?
  ((code == 69)) || fail "wrapper_check_gpu: exit code $code"
fi
# A whole server, asked from its own network.
unshare --user --map-root-user --net --mount bash -c '
  python3 -c "
import fcntl, socket, struct
with socket.socket() as s:
    request = struct.pack(\"16sH14x\", b\"lo\", 0x1)  # IFF_UP
    fcntl.ioctl(s, 0x8914, request)  # SIOCSIFFLAGS
"
  mount --rbind /proc "$0/proc"
  mount --rbind /dev "$0/dev"
  chroot "$0" /opt/bin/quire serve --port 8080 --device cpu >/dev/null &
  server=$!
  for _ in $(seq 300); do
    if exec 3<>/dev/tcp/127.0.0.1/8080 2>/dev/null; then
      printf "GET /health/ready HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n" >&3
      if grep -q "200 OK" <&3; then kill "$server"; wait "$server"; exit 0; fi
    fi 2>/dev/null
    sleep 0.1
  done
  kill "$server"
  exit 1
' "$work" || fail "serve"
echo "package_test: passed"
