package ublk

import "testing"

func TestFeaturesString(t *testing.T) {
	for f, want := range map[Features]string{
		0:                                "none",
		FeatureRecovery | FeatureReissue: "recovery,reissue",
		0x1FE:                            "comp-in-task,need-get-data,recovery,reissue,unprivileged,ioctl-encode,user-copy,zoned",
		FeatureQuiesce | 1<<40:           "quiesce,bit40",
		1 << 19:                          "shmem-zc",
	} {
		if got := f.String(); got != want {
			t.Errorf("%#x is %q, want %q", uint64(f), got, want)
		}
	}
}

func TestFeaturesHas(t *testing.T) {
	f := FeatureRecovery | FeatureEncoded
	if !f.Has(FeatureRecovery) || !f.Has(f) || f.Has(FeatureRecovery|FeatureReissue) || !f.Has(0) {
		t.Errorf("%v tells wrong", f)
	}
}

func TestStateString(t *testing.T) {
	for s, want := range map[State]string{
		StateDead: "dead", StateLive: "live", StateQuiesced: "quiesced", StateFailIO: "fail-io", 9: "state 9",
	} {
		if s.String() != want {
			t.Errorf("state %d is %q, want %q", uint16(s), s, want)
		}
	}
}
