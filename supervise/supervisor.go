package supervise

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"os/signal"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"coppice/internal/resident"
)

// StopSignal ends supervisor and daemon in order, as SIGTERM does a daemon that nobody supervises.
const StopSignal = syscall.SIGUSR1

// supervisor is the process that [Start] leaves.
type supervisor struct {
	Options
	log     *slog.Logger
	status  *os.File // until the first daemon is ready; then nil
	program *os.File // of the next daemon
	former  *os.File // the one before, until the new one has proved itself; or nil
	adopted time.Time
	stop    chan os.Signal
	pace    pace
}

// Run is what the hidden command coppice supervise does. It returns when [Stop] has been called and the daemon has ended, or
// when the first daemon does not come up, which Start is told, and reports.
func Run(log *slog.Logger) error {
	ignored := resident.BecomeFlusher()
	s, err := inherit(log)
	if err != nil {
		return err
	}
	signal.Ignore(syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP, syscall.SIGPIPE)
	signal.Notify(s.stop, StopSignal)
	ignored = errors.Join(ignored, resident.SetName("coppice-super"), resident.LockMemory(), never())
	if ignored != nil {
		log.Warn("supervisor not protected as wished; going on", "error", ignored)
	}
	err = enterRoot(s.Files, s.Binds)
	if err == nil {
		err = s.record()
	}
	if err == nil {
		err = s.loop()
	}
	return s.tell(err)
}

// never keeps the kernel from ending the process for its memory.
func never() error { return os.WriteFile("/proc/self/oom_score_adj", []byte("-1000"), 0) }

// inherit takes what Start has left open.
func inherit(log *slog.Logger) (*supervisor, error) {
	s := &supervisor{log: log, stop: make(chan os.Signal, 1)}
	settings := os.NewFile(settingsFile, "settings")
	if err := json.NewDecoder(io.NewSectionReader(settings, 0, 1<<20)).Decode(&s.Options); err != nil {
		return nil, fmt.Errorf("read settings: %w: this command is for coppice itself", err)
	}
	for fd := settingsFile; fd <= programFile; fd++ {
		unix.CloseOnExec(fd)
	}
	s.status, s.program = os.NewFile(statusFile, "status"), os.NewFile(programFile, "program")
	return s, errors.Join(s.validate(), settings.Close())
}

// tell says to Start how it went, once.
func (s *supervisor) tell(err error) error {
	if s.status == nil {
		return err
	}
	text := statusReady
	if err != nil {
		text = err.Error() + "\n"
	}
	_, writeErr := io.WriteString(s.status, text)
	writeErr = errors.Join(writeErr, s.status.Close()) // one who waits no longer is no matter
	if s.status = nil; writeErr != nil {
		s.log.Warn("nobody waits for the daemon any more", "error", writeErr)
	}
	return err
}

// loop keeps a daemon running.
func (s *supervisor) loop() error {
	for {
		began := time.Now()
		ended, err := s.runDaemon()
		switch {
		case s.status != nil && err == nil:
			return errors.New("the daemon has ended before it was ready")
		case s.status != nil:
			return err
		case ended:
			s.log.Info("supervisor ends, as it was asked to")
			return err
		}
		lived := time.Since(began)
		wait := s.pace.after(lived)
		s.log.Error("the daemon has ended; starting it again", "reason", err, "lived", lived.Round(time.Millisecond), "pause", wait)
		s.goBack()
		time.Sleep(wait)
	}
}

// runDaemon returns when a daemon has ended; asked tells whether it was asked to.
func (s *supervisor) runDaemon() (asked bool, err error) {
	link, theirs, err := newLink()
	if err != nil {
		return false, err
	}
	defer func() { _ = link.Close() }()
	cmd := &exec.Cmd{
		Path: resident.Path(s.program), Args: append([]string{name, "--run-dir", s.RunDir}, s.Args...), Dir: "/",
		Env:    append(append(environment(), s.Env...), linkVariable+"="+strconv.Itoa(settingsFile)),
		Stdout: os.Stdout, Stderr: os.Stderr, ExtraFiles: []*os.File{theirs},
		SysProcAttr: &syscall.SysProcAttr{Setsid: true},
	}
	err = cmd.Start()
	if err := errors.Join(err, theirs.Close()); err != nil {
		return false, fmt.Errorf("start daemon: %w", err)
	}
	s.spare(cmd.Process.Pid)
	messages, ended := listen(link), make(chan error, 1)
	heard := messages // nil when all has been heard
	go func() { ended <- cmd.Wait() }()
	var said error
	for {
		select {
		case m, ok := <-heard:
			if !ok {
				heard = nil
				continue
			}
			said = s.hear(m)
		case <-s.stop:
			asked = true
			_ = cmd.Process.Signal(StopSignal)
		case err := <-ended:
			for m := range messages {
				said = s.hear(m)
			}
			return asked, errors.Join(said, err)
		}
	}
}

// listen closes the channel when the daemon has closed its end.
func listen(link *os.File) <-chan message {
	messages := make(chan message)
	go func() {
		defer close(messages)
		for {
			m, err := receive(link)
			if err != nil {
				return
			}
			messages <- m
		}
	}()
	return messages
}

// hear acts on a message, and returns what went wrong where it tells that.
func (s *supervisor) hear(m message) error {
	if why, ok := strings.CutPrefix(m.text, sayFailed); ok {
		return errors.New(why)
	}
	if m.text == sayReady && m.program != nil {
		s.adopt(m.program)
		_ = s.tell(nil)
	}
	return nil
}

// adopt makes program that of the next daemon, if it is another one than it is now.
func (s *supervisor) adopt(program *os.File) {
	a, errA := program.Stat()
	b, errB := s.program.Stat()
	if errA != nil || errB != nil || os.SameFile(a, b) {
		_ = program.Close()
		return
	}
	s.log.Info("the daemon is of another program now; later ones will be of that")
	if s.former != nil {
		_ = s.former.Close()
	}
	s.former, s.program, s.adopted = s.program, program, time.Now()
	s.pace = pace{}
}

// goBack makes the former program that of the next daemon where the new one does not last.
func (s *supervisor) goBack() {
	if s.former == nil {
		return
	}
	if time.Since(s.adopted) >= proof {
		_ = s.former.Close()
		s.former = nil
		return
	}
	s.log.Error("the daemon of the new program died soon; going back to the former one")
	_ = s.program.Close()
	s.program, s.former = s.former, nil
}

const (
	// soon is how long a daemon has to live to be none that dies at once.
	soon = 30 * time.Second
	// proof is how long a daemon of a new program has to serve to be followed by others of it.
	proof = 10 * time.Second
)

// pace is how fast daemons are started again. The zero value is of none that died. While nothing serves, all that reads from the devices or writes to them waits, and so does the machine
// whose root is one of them: a pause is only to leave it some of its processors.
type pace struct{ inARow int }

// after returns how long to wait after a daemon that has lived so long.
func (p *pace) after(lived time.Duration) time.Duration {
	const atOnce, first, most = 5, 100 * time.Millisecond, time.Second
	if lived >= soon {
		p.inARow = 0
		return 0
	}
	p.inARow++
	if p.inARow <= atOnce {
		return 0
	}
	return min(first<<min(p.inARow-atOnce-1, 10), most)
}
