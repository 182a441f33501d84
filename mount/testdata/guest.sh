#!/bin/sh
# guest.sh PROGRAM [ARG]...: runs PROGRAM as root under Debian's kernel, which has nbd,
# in a throw-away machine of qemu without disks or network, and exits with its code,
# or with 97 if the kernel cannot be had, or 98 if the machine did not come to an end.
# The kernel's package is fetched once, unpacked into a cache directory and never installed.
# It finds mkfs.ext4, e2fsck and the TIDEMARK_GUEST_PROGRAMS (paths) in /sbin, and can load the TIDEMARK_GUEST_MODULES (such as drivers/md/dm-mod).
# Needs qemu-system-x86, busybox-static, e2fsprogs, and apt-get for the first time.
set -eu
cache=${TIDEMARK_GUEST_CACHE:-${XDG_CACHE_HOME:-${HOME:-/root}/.cache}/tidemark/guest}
mkdir -p "$cache"

# One fetches, others wait.
exec 9>"$cache/lock"
flock 9
if [ ! -e "$cache/kernel/complete" ]; then
	rm -rf "$cache/kernel" "$cache/deb"
	mkdir -p "$cache/deb"
	package=$(apt-cache depends linux-image-cloud-amd64 | awk '/Depends:/ {print $2; exit}')
	[ -n "$package" ] || { echo "guest.sh: apt knows no linux-image-cloud-amd64: run apt-get update" >&2; exit 97; }
	(cd "$cache/deb" && apt-get download -q "$package" >&2) || { echo "guest.sh: cannot fetch $package" >&2; exit 97; }
	dpkg -x "$cache"/deb/*.deb "$cache/kernel"
	rm -rf "$cache/deb"
	touch "$cache/kernel/complete"
fi
flock -u 9
version=$(ls "$cache/kernel/lib/modules")

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
root=$work/root
mkdir -p "$root/bin" "$root/sbin" "$root/proc" "$root/sys" "$root/dev" "$root/tmp" "$root/etc" "$root/lib/modules/$version"
cp "$(command -v busybox)" "$root/bin/"
for applet in sh mount modprobe cat ls sync; do ln -s busybox "$root/bin/$applet"; done

# Modules, with what they depend on. ext4 is in the kernel.
modules=$cache/kernel/lib/modules/$version
for m in drivers/block/nbd drivers/block/loop fs/fuse/fuse ${TIDEMARK_GUEST_MODULES:-}; do
	mkdir -p "$root/lib/modules/$version/kernel/${m%/*}"
	cp "$modules/kernel/$m.ko" "$root/lib/modules/$version/kernel/$m.ko"
done
cp "$modules/modules.builtin" "$modules/modules.order" "$root/lib/modules/$version/"
busybox depmod -b "$root" "$version"

# Programs, with their libraries.
cp "$1" "$root/program"
for p in "$1" "$(command -v mkfs.ext4)" "$(command -v e2fsck)" ${TIDEMARK_GUEST_PROGRAMS:-}; do
	[ "$p" = "$1" ] || cp -L "$p" "$root/sbin/"
	for l in $(ldd "$p" 2>/dev/null | grep -o '/[^ ]*'); do
		mkdir -p "$root/${l%/*}"
		[ -e "$root/$l" ] || cp -L "$l" "$root/$l"
	done
done
cp /etc/mke2fs.conf "$root/etc/"
shift
{
	cat <<'I'
#!/bin/busybox sh
export PATH=/sbin:/bin HOME=/tmp TMPDIR=/tmp TIDEMARK_GUEST=1
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mount -t tmpfs tmp /tmp
busybox ip link set lo up
modprobe loop
modprobe fuse
cd /tmp
I
	printf '/program'
	for a; do printf " '%s'" "$a"; done
	# The kernel falls silent first: its last words would run into ours.
	printf '\ncode=$?\necho 0 >/proc/sys/kernel/printk\necho "guest: exit code $code"\nbusybox sleep 1\necho o >/proc/sysrq-trigger\nexec sleep 60\n'
} >"$root/init"
chmod +x "$root/init"
(cd "$root" && find . | busybox cpio -o -H newc 2>/dev/null) >"$work/initrd"

# One at a time: each takes all processors, and those in it measure time. Not so one that does nothing but wait (TIDEMARK_GUEST_BESIDE).
if [ -z "${TIDEMARK_GUEST_BESIDE:-}" ]; then
	exec 8>"$cache/turn"
	flock 8
fi

# Without KVM: nested machines often have none, and a few seconds are enough. Not compressed: it boots faster.
timeout "${TIDEMARK_GUEST_TIMEOUT:-900}" qemu-system-x86_64 -M pc -accel tcg,thread=multi -cpu max -smp 2 -m 1024 \
	-nodefaults -nographic -no-reboot -serial stdio -kernel "$cache"/kernel/boot/vmlinuz-* -initrd "$work/initrd" \
	-append "console=ttyS0 quiet panic=-1 mitigations=off random.trust_cpu=on no_timer_check tsc=reliable" \
	</dev/null 2>&1 8>&- | tee "$work/out" || true
code=$(sed -n 's/^guest: exit code \([0-9]*\).*/\1/p' "$work/out" | tail -1)
exit "${code:-98}"
