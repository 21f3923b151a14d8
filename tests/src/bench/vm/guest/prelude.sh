# What every workload begins with. Lines that begin with @@ are for the host; times are the
# guest's own, in seconds since its start.
export PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LC_ALL=C

# measure NAME COMMAND: what it printed is told, too, so that the host can compare it.
measure() {
    read -r from _ < /proc/uptime
    printf '\n@@ begin %s %s\n' "$1" "$from"
    value=$(eval "$2")
    status=$?
    read -r to _ < /proc/uptime
    printf '\n@@ end %s %s %s %s\n' "$1" "$to" "$status" "$value"
}

# The host ends us.
finish() {
    sync
    printf '\n@@ done\n'
    while :; do sleep 1000; done
}
