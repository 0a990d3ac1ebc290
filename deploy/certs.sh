#!/bin/sh
# Certificates for mutual TLS: a CA of your own, one certificate for the teacher, one for each edge.
#
#     deploy/certs.sh DIR TEACHER[,TEACHER...] [EDGE ...]
#
# TEACHER is a name or an address by which edges reach the teacher. Separate several names of one certificate with commas. Existing
# files are kept, so the same command with one more EDGE adds it. To renew a certificate, delete its .pem and run the command again.
#
#     deploy/certs.sh certs vm.example.org,10.0.0.5 pi-1 pi-2
#
# writes ca.pem, ca.key, teacher.pem and teacher.key, pi-1.pem and pi-1.key, pi-2.pem and pi-2.key. Keep ca.key off both ends: its
# owner can issue certificates for teachers and edges.
set -eu

DAYS_CA=3650
DAYS=${DAYS:-365}

if [ $# -lt 2 ]; then
    sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p;}' "$0" >&2
    exit 2
fi
command -v openssl >/dev/null || { echo "certs.sh needs openssl: apt-get install openssl" >&2; exit 1; }

dir=$1 names=$2
shift 2
set -f  # no file patterns: a name may be *.example.org
case ${DAYS#-} in  # a negative number makes expired certificates, for tests of both ends
    '' | *[!0-9]* | 0*) echo "certs.sh: DAYS is '$DAYS', must be a number of days" >&2; exit 2 ;;
esac
names=$(echo "$names" | tr , ' ')
for name in $names; do
    case $name in
        *[!A-Za-z0-9.:*_-]* | -*)
            echo "certs.sh: '$name' must be a host name or an IP address of the teacher" >&2
            exit 2 ;;
    esac
done
[ -n "${names%% *}" ] || { echo "certs.sh: the first name of the teacher is empty, give a host name or an IP address" >&2; exit 2; }
for edge in "$@"; do
    case $edge in
        ca | teacher | *[!A-Za-z0-9._-]* | [.-]* | '')
            echo "certs.sh: '$edge' is no name for an edge: use letters, digits, '.', '_' and '-', but not ca or teacher" >&2
            exit 2 ;;
    esac
done
umask 077
mkdir -p "$dir"
trap 'rm -f "$dir/.extensions" "$dir/.request" "$dir/.fresh" "$dir/.output"' EXIT

new_key() {
    [ -e "$1" ] && return
    openssl ecparam -name prime256v1 -genkey -noout -out "$dir/.fresh"
    mv "$dir/.fresh" "$1"  # atomic: an interrupted run leaves no partial file
}

# sign NAME SUBJECT EXTENSIONS: create NAME.pem for NAME.key
sign() {
    if [ -e "$dir/$1.pem" ]; then
        echo "$dir/$1.pem exists and is kept; delete it to create a new one"
        return
    fi
    [ -e "$dir/ca.key" ] || { echo "certs.sh: $dir/ca.key is missing and is needed to sign $1.pem; restore it" >&2; exit 1; }
    new_key "$dir/$1.key"
    printf '%b' "$3" >"$dir/.extensions"
    openssl req -new -key "$dir/$1.key" -subj "/O=EdgeKD/CN=$2" -out "$dir/.request"
    # On success, its messages have no useful information.
    openssl x509 -req -in "$dir/.request" -CA "$dir/ca.pem" -CAkey "$dir/ca.key" -set_serial "0x$(openssl rand -hex 16)" \
        -days "$DAYS" -extfile "$dir/.extensions" -out "$dir/.fresh" 2>"$dir/.output" || { cat "$dir/.output" >&2; exit 1; }
    chmod 644 "$dir/.fresh"
    mv "$dir/.fresh" "$dir/$1.pem"
    echo "$dir/$1.pem, valid for $DAYS days"
}

if [ ! -e "$dir/ca.pem" ]; then
    new_key "$dir/ca.key"
    openssl req -x509 -new -key "$dir/ca.key" -subj "/O=EdgeKD/CN=EdgeKD CA" -days "$DAYS_CA" -out "$dir/.fresh" \
        -addext basicConstraints=critical,CA:TRUE -addext keyUsage=critical,keyCertSign,cRLSign
    chmod 644 "$dir/.fresh"
    mv "$dir/.fresh" "$dir/ca.pem"
    echo "$dir/ca.pem, valid for $DAYS_CA days; store $dir/ca.key offline"
fi

alternatives=
for name in $names; do
    case $name in
        *[!0-9.]* | '') case $name in *:*) kind=IP ;; *) kind=DNS ;; esac ;;
        *) kind=IP ;;
    esac
    alternatives=$alternatives${alternatives:+,}$kind:$name
done
sign teacher "${names%% *}" "subjectAltName=$alternatives\nextendedKeyUsage=serverAuth\nbasicConstraints=critical,CA:FALSE\n"
for edge in "$@"; do
    sign "$edge" "$edge" "subjectAltName=DNS:$edge\nextendedKeyUsage=clientAuth\nbasicConstraints=critical,CA:FALSE\n"
done
