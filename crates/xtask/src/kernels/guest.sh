# The guest's first process: a machine with cgroups of version 2 alone, in which kiln is checked as root, as a user with
# sub-identifiers and as one without.
export PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LANG=C.UTF-8 TERM=dumb
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devices /dev
# No /dev/fd, which udev would make: kiln has to do without (TOMOYO before 6.12 looks for it).
mkdir -p /dev/pts /dev/shm /kiln /kernel
mount -t devpts -o gid=5,mode=620,ptmxmode=666 devpts /dev/pts
mount -t tmpfs -o mode=1777 shared /dev/shm
mount -t tmpfs run /run
mount -t cgroup2 cgroup2 /sys/fs/cgroup
mount --make-rshared /
mount -t ext4 /dev/vdb /kiln
mount -t ext4 /dev/vdc /kernel
# An archive that kiln saved is its owner's alone.
chmod -R a+rX /kiln
hostname guest
busybox ifconfig lo up
mkdir -p /lib/modules
for modules in /kernel/lib/modules/* /kernel/usr/lib/modules/*; do
    [ ! -d "$modules/kernel" ] || ln -s "$modules" /lib/modules/
done
depmod -a 2> /dev/null

number=1001
for user in sub single; do
    echo "$user:x:$number:$number::/home/$user:/bin/sh" >> /etc/passwd
    echo "$user:x:$number:" >> /etc/group
    number=$((number + 1))
done
echo sub:100000:65536 > /etc/subuid
echo sub:100000:65536 > /etc/subgid

for user in root sub single; do
    directory=/home/tour-$user
    mkdir -p $directory
    chown $user $directory
    cd $directory
    echo "== $user"
    setpriv --reuid $user --regid $user --init-groups \
        env HOME=$directory timeout 1800 sh /kiln/tour.sh /kiln/kiln /kiln
done

if [ -f /kiln/tests ]; then
    echo '== tests'
    # Tests find kiln and the repository by their absolute paths.
    cp -a /kiln/tree/. /
fi
while read -r directory program name; do
    if ! cd "$directory"; then
        echo "FAILED tests $name: there is no $directory"
        continue
    fi
    begin=$(date +%s)
    timeout 1800 "$program" --nocapture < /dev/null > /tmp/log 2>&1
    code=$?
    took="$(grep -c SKIPPED /tmp/log) skipped, $(($(date +%s) - begin)) s"
    if [ $code = 0 ]; then
        echo "ok tests $name ($took)"
    else
        echo "FAILED tests $name ($took)"
        grep -av '\.\.\. ok$' /tmp/log | tail -n 60 | sed 's/^/    /'
    fi
done < /kiln/tests 2> /dev/null
echo 'the end'
sync
busybox poweroff -f
