#!/bin/sh
# Write the server's ACL file: the rules of all *.acl, and for each user the SHA-256 of its password.
#
#   make-acl.sh RULES PASSWORDS OUT
#
# RULES is the folder of the rules. PASSWORDS is a folder, as a Secret is mounted: a file per user, and NAME.previous
# while a password is being changed, so that both are good. A user that needs a password and has none stops the start.
set -eu
rules=$1
passwords=$2
out=$3
umask 077

# One user a line: comments and empty lines out, indented lines joined to the one before.
join() {
    awk '/^[ \t]*#/ || /^[ \t]*$/ { next } /^[ \t]/ { line = line $0; next } { if (line) print line; line = $0 }
         END { print line }' "$rules"/*.acl
}

join | while read -r word name rest; do
    hashes=
    for file in "$passwords/$name" "$passwords/$name.previous"; do
        [ -s "$file" ] || continue
        hashes="$hashes #$(tr -d '\r\n' <"$file" | sha256sum | cut -d ' ' -f 1)"
    done
    case " $rest " in
    *" off "* | *" nopass "*) ;;
    *)
        if [ -z "$hashes" ]; then
            echo "make-acl: the Secret has no password for $name" >&2
            exit 1
        fi
        ;;
    esac
    echo "$word $name $rest$hashes"
done >"$out.new"
mv "$out.new" "$out"
