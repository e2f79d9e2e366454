#!/bin/sh
# Makes the certificates of the TLS tests: a CA, a server for "broker.test" and 127.0.0.1, clients with keys in each of the
# forms OpenSSL writes, a key that belongs to nobody, what a GX makes for itself, and a certificate of X.509 version 1. They protect nothing, and are good from 2020 to 2120.
set -eu
cd "$(dirname "$0")"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
: >"$work/index.txt"
cat >"$work/ca.cnf" <<END
[ca]
default_ca = test
[test]
database = $work/index.txt
rand_serial = yes
new_certs_dir = $work
default_md = sha256
policy = any
[any]
commonName = supplied
[authority]
basicConstraints = critical,CA:TRUE
keyUsage = critical,keyCertSign,cRLSign
[server]
subjectAltName = DNS:broker.test,IP:127.0.0.1
[client]
extendedKeyUsage = clientAuth
END
sign() { # section, name, how it is signed
    section=$1
    name=$2
    shift 2
    openssl req -new -key "$name.key" -subj "/CN=$name" -out "$work/$name.csr"
    openssl ca -batch -notext -config "$work/ca.cnf" -extensions "$section" -in "$work/$name.csr" -out "$name.pem" \
        -startdate 20200101000000Z -enddate 21200101000000Z "$@"
}
key() { openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out "$1.key"; }
key ca
sign authority ca -selfsign -keyfile ca.key
key server
sign server server -cert ca.pem -keyfile ca.key
key client
sign client client -cert ca.pem -keyfile ca.key
openssl genpkey -algorithm RSA -pkeyopt rsa_keygen_bits:2048 -out client-rsa.key
sign client client-rsa -cert ca.pem -keyfile ca.key
openssl ec -in client.key -out client-sec1.key
openssl rsa -in client-rsa.key -traditional -out client-rsa-pkcs1.key
openssl pkcs8 -topk8 -in client.key -passout pass:secret -out client-encrypted.key
key other
openssl req -subj /CN=venus.local -newkey rsa:2048 -nodes -x509 -days 36524 -keyout gx.key -out gx.pem
key v1
openssl req -new -key v1.key -subj /CN=v1 -out "$work/v1.csr"
openssl x509 -req -in "$work/v1.csr" -signkey v1.key -days 36524 -out v1.pem
rm ca.key
chmod 644 ./*.key
