package boot

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

const exampleLease = `DEVICE='enp0s1'
PROTO='dhcp'
IPV4ADDR='10.0.2.15'
IPV4DNS0='10.0.2.3'
IPV4DNS1='0.0.0.0'
DNSDOMAIN='lab.example'
`

func networked(t *testing.T, files map[string]string) string {
	t.Helper()
	root := t.TempDir()
	for name, text := range files {
		if err := writeFile(filepath.Join(root, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return root
}

func TestResolvConf(t *testing.T) {
	root := networked(t, map[string]string{"run/net-enp0s1.conf": exampleLease})
	if err := writeResolvConf(root); err != nil {
		t.Fatal(err)
	}
	wantFile(t, filepath.Join(root, "etc/resolv.conf"), "search lab.example\nnameserver 10.0.2.3\n", 0o644)
	root = networked(t, map[string]string{
		"run/systemd/netif/leases/2": "# This is private data. Do not parse.\nADDRESS=10.0.2.15\nSERVER_ADDRESS=10.0.2.2\nDNS=10.0.2.3 10.0.2.4\nDOMAINNAME=lab.example\n",
		"sys/class/net/lo/ifindex":   "1\n",
		"sys/class/net/eth0/ifindex": "2\n",
	})
	if err := errors.Join(writeResolvConf(root), keepNetwork(root)); err != nil {
		t.Fatal(err)
	}
	wantFile(t, filepath.Join(root, "etc/resolv.conf"), "search lab.example\nnameserver 10.0.2.3\nnameserver 10.0.2.4\n", 0o644)
	if data, err := os.ReadFile(filepath.Join(root, "run/systemd/network/05-coppice-eth0.network")); err != nil || !strings.Contains(string(data), "DHCP=ipv4") {
		t.Errorf("%q, %v", data, err)
	}
	const own = "nameserver 192.0.2.1\n"
	root = networked(t, map[string]string{"run/net-enp0s1.conf": exampleLease, "etc/resolv.conf": own})
	if err := writeResolvConf(root); err != nil {
		t.Fatal(err)
	}
	wantFile(t, filepath.Join(root, "etc/resolv.conf"), own, 0o644)
}

func TestKeepNetwork(t *testing.T) {
	root := networked(t, map[string]string{
		"run/net-enp0s1.conf": exampleLease,
		"run/net-eth1.conf":   "DEVICE='eth1'\nPROTO='none'\nIPV4DNS0='192.0.2.1'\n",
		"run/net-evil.conf":   "DEVICE='a b'\n",
		"run/net-star.conf":   "DEVICE='*'\n",
		// What the module for dracut has written of an interface goes before the lease of systemd-networkd.
		"sys/class/net/eth1/ifindex": "3\n",
		"run/systemd/netif/leases/3": "SERVER_ADDRESS=192.0.2.2\n",
	})
	for range 2 { // again after a shell
		if err := keepNetwork(root); err != nil {
			t.Fatal(err)
		}
	}
	for path, want := range map[string]string{
		"systemd/network/05-coppice-enp0s1.network":           "Name=enp0s1\n\n[Network]\nKeepConfiguration=yes\nDHCP=ipv4\n",
		"systemd/network/05-coppice-eth1.network":             "KeepConfiguration=yes\nDNS=192.0.2.1\n",
		"systemd/system/networking.service.d/50-coppice.conf": `Environment="EXCLUDE_INTERFACES=enp0s1 eth1"`,
		"NetworkManager/conf.d/50-coppice.conf":               "unmanaged-devices=interface-name:enp0s1;interface-name:eth1\n",
	} {
		data, err := os.ReadFile(filepath.Join(root, "run", path))
		if err != nil || !strings.Contains(string(data), want) {
			t.Errorf("%s: %q, %v", path, data, err)
		}
	}
	if to, err := os.Readlink(filepath.Join(root, "run/systemd/system/ifup@enp0s1.service")); err != nil || to != os.DevNull {
		t.Errorf("ifup@enp0s1 is not masked: %q, %v", to, err)
	}
	alone := networked(t, nil)
	if err := keepNetwork(alone); err != nil {
		t.Fatal(err)
	}
	if entries, err := os.ReadDir(alone); err != nil || len(entries) > 0 {
		t.Errorf("without a network: %v, %v", entries, err)
	}
}
