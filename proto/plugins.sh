#!/usr/bin/env bash
# Fetches what Debian has to generate and to compile stubs in other languages, unpacked under .tools/stubs: nothing is
# installed. Put .tools/stubs/bin on the PATH.
#   proto/plugins.sh generators   protoc and the plugins that buf.gen.yaml names (6 MB)
#   proto/plugins.sh java         the libraries that Java stubs compile against, for the JDK at hand (10 MB)
#   proto/plugins.sh go           a Go toolchain and the libraries that Go stubs compile against (90 MB)
set -euo pipefail
stubs=$(cd "$(dirname "$0")/.." && pwd)/.tools/stubs
generators=(protoc-gen-go-1-5 protoc-gen-go-grpc protobuf-compiler protobuf-compiler-grpc-java-plugin)
java=(
  libprotobuf-java libgrpc-java libnetty-java libguava-java libopencensus-java libperfmark-java libgoogle-gson-java
  libjsr305-java liberror-prone-java libgeronimo-annotation-1.3-spec-java
)
go=(
  golang-google-protobuf-dev golang-google-grpc-dev golang-google-genproto-dev golang-github-golang-protobuf-1-5-dev
  golang-golang-x-net-dev golang-golang-x-sys-dev golang-golang-x-text-dev
)

main() {
  command -v apt-get >/dev/null || { echo "plugins.sh fetches Debian's packages, and there is no apt-get here" >&2; exit 1; }
  apt-cache show "${generators[0]}" >/dev/null 2>&1 || apt-get -qq update
  local part
  for part in "${@:-generators}"; do
    case $part in
      generators)
        unpack "$part" "${generators[@]}" $(names 'libproto(buf|c)[0-9][0-9a-z]*' "${generators[@]}")
        wrap
        ;;
      java) unpack "$part" "${java[@]}" ;;
      go) unpack "$part" "${go[@]}" $(names 'golang-[0-9.]+-(go|src)' golang-go golang-src) ;;
      *) echo "no such part: $part (generators, java, go)" >&2; exit 2 ;;
    esac
  done
}

# The versioned packages that these ones depend on, whichever this release of Debian has.
names() { apt-cache depends "${@:2}" | grep -oE "$1" | sort -u; }

unpack() { # PART PACKAGE…
  local deb
  if [ -d "$stubs/$1" ]; then return; fi
  mkdir -p "$stubs"
  work=$(mktemp -d "$stubs/unpacking.XXXXXX")
  trap 'rm -rf "$work"' EXIT
  (
    cd "$work"
    apt-get -qq download "${@:2}" || { apt-get -qq update && apt-get -qq download "${@:2}"; }
    for deb in *.deb; do
      dpkg-deb --fsys-tarfile "$deb" | tar -x --exclude './usr/share/go-*/test' --exclude './usr/share/doc'
    done
    rm -- *.deb
  )
  mv "$work" "$stubs/$1"
}

# Debian's plugins need libraries that are not installed, and one bears another name than buf.gen.yaml asks for.
wrap() {
  local pair
  mkdir -p "$stubs/bin"
  for pair in protoc:protoc protoc-gen-go:protoc-gen-go protoc-gen-go-grpc:protoc-gen-go-grpc \
    protoc-gen-grpc-java:grpc_java_plugin; do
    cat >"$stubs/bin/${pair%:*}" <<END
#!/usr/bin/env bash
usr=\$(cd "\$(dirname "\$0")/../generators/usr" && pwd)
for lib in "\$usr"/lib/*-linux-*; do export LD_LIBRARY_PATH=\$lib\${LD_LIBRARY_PATH:+:\$LD_LIBRARY_PATH}; done
exec "\$usr/bin/${pair#*:}" "\$@"
END
    chmod +x "$stubs/bin/${pair%:*}"
  done
}

main "$@"
