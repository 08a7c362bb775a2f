#!/bin/bash
# PostgreSQL in /data, and pgbench beside it over its Unix socket, five seconds at a time until /data/stop is there.
set -eu
export PGUSER=postgres
user="setpriv --reuid postgres --regid postgres --init-groups"
install -d -o postgres /run/postgresql
install -d -o postgres -m 700 /data/pg
$user initdb -D /data/pg -A trust >/dev/null
echo 'host all all all trust' >> /data/pg/pg_hba.conf
$user postgres -D /data/pg -c listen_addresses='*' &
until pg_isready -q; do sleep 0.2; done
psql -qc 'create table written (n int)'
pgbench -i -s 2 -q
while [ ! -e /data/stop ]; do
  pgbench -n -c 4 -T 5 >>/data/bench.log 2>&1
done
echo done >>/data/bench.log
wait
