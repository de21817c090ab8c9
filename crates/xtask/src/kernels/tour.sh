# tour.sh KILN FILES: kiln's usual commands, in the current directory. Says for each check `ok` or `FAILED`, and why.
umask 022
program=$1
files=$2
store=$PWD/store
epoch=SOURCE_DATE_EPOCH=1700000000

kiln() { "$program" --root "$store" "$@"; }

check() {
    name=$1
    shift
    begin=$(date +%s)
    # Not in a condition, where -e has no effect.
    (
        set -e
        "$@"
    ) > log 2>&1 < /dev/null
    code=$?
    took="$(($(date +%s) - begin)) s"
    if [ $code = 0 ]; then
        echo "ok $name ($took)"
    else
        echo "FAILED $name ($took)"
        tail -n 40 log | sed 's/^/    /'
    fi
}

describes() {
    kiln version
    kiln info | tee info
}

loads() { kiln load -i "$files/base.image"; }

builds() {
    kiln build --progress=plain --build-arg $epoch --iidfile first -t tour "$files/context" 2>&1 | tee built
    grep -q 'heredoc 42' built
}

builds_again() {
    kiln build --progress=plain --build-arg $epoch --iidfile second -t tour "$files/context" 2>&1 | tee built
    cmp first second
    ! grep -q 'heredoc 42' built || false
    grep -q CACHED built
}

has_the_id() { cmp first "$files/expected"; }

runs() {
    [ "$(kiln run --rm tour)" = "in tour 5:6 cached" ]
    code=0
    kiln run --rm tour sh -c 'exit 7' || code=$?
    [ $code = 7 ]
}

runs_with_volumes() {
    mkdir -p volume
    echo given > volume/file
    chmod -R a+rX volume
    [ "$(kiln run --rm -v "$PWD/volume:/given:ro" tour sh -c 'cat /given/file; echo x > /given/x || echo refused')" \
        = "given
refused" ]
}

runs_on_a_terminal() {
    script -qec "'$program' --root '$store' run --rm -it tour sh -c '[ -t 0 ] && echo terminal-\$((40 + 2))'" /dev/null \
        | tee terminal
    grep -q terminal-42 terminal
}

saves_and_loads() {
    kiln save -o saved.tar tour
    store=$PWD/other
    kiln load -i saved.tar
    kiln images -q --no-trunc | grep -qx "$(cat first)"
    kiln run --rm tour
}

tells_about_images() {
    [ "$(kiln image files tour | wc -l)" -gt 1000 ]
    kiln history tour
    kiln image diff base tour | grep -q '^A /all/one$'
}

is_consistent() { kiln system check; }

stacks_layers() {
    mkdir -p deep
    {
        echo FROM base
        layer=1
        while [ $layer -lt 499 ]; do
            echo "COPY f /d/$layer"
            layer=$((layer + 1))
        done
        echo "RUN [ \$(ls /d | wc -l) = 498 ]"
    } > deep/Dockerfile
    echo f > deep/f
    kiln build -q --build-arg $epoch -t deep deep
}

refuses_more_layers() {
    { cat deep/Dockerfile; echo 'RUN true'; } > deep/more
    code=0
    kiln build -q --build-arg $epoch -f deep/more deep 2> err || code=$?
    cat err
    [ $code != 0 ]
    grep -q 499 err
}

# On 6.12 and later root's layers are mounted in their tars, else they are unpacked.
places_layers() {
    mounted=$(find "$store/mounts" -type f 2> /dev/null | wc -l)
    echo "$mounted layers are mounted in their tars"
    expect=0
    if [ "$(id -u)" = 0 ] && [ "$(stat -f -c %T "$store")" != overlayfs ] \
        && [ "$(printf '6.12\n%s\n' "$(uname -r)" | sort -V | head -n 1)" = 6.12 ]; then
        expect=1
    fi
    [ $((mounted > 0)) = $expect ]
}

cleans_up() {
    kiln rmi deep
    kiln system prune -af
    kiln system check
    ! grep -q "$PWD" /proc/self/mountinfo || false
}

check 'info and version' describes
grep -E 'File Owners|Isolation|Cgroup' info | sed 's/^ */    /'
check load loads
check build builds
check 'the second build is cached' builds_again
[ ! -e "$files/expected" ] || check 'the image ID is the expected one' has_the_id
check run runs
check 'run -v' runs_with_volumes
check 'run -it' runs_on_a_terminal
check 'save and load' saves_and_loads
check 'files, history and diff' tells_about_images
check 'system check' is_consistent
check '499 layers below a step' stacks_layers
check '500 are refused' refuses_more_layers
check 'layers are mounted or unpacked' places_layers
check 'rmi and prune; nothing stays mounted' cleans_up
