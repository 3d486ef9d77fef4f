#!/bin/bash
# Healthy: Chroma answers a question that reads its database; its heartbeat stays 200 whatever happens to the disk.
# The image holds no HTTP client, but bash can speak to a port.
set -eu
exec 3<>"/dev/tcp/127.0.0.1/8000"
printf 'GET /api/v2/tenants/default_tenant/databases/default_database/collections_count HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n' >&3
read -r -t 4 _ status _ <&3
[[ $status == 200 ]]
