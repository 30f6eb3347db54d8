package node

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"strings"
	"syscall"

	"coppice/ublk"
	"coppice/union"
)

// Code names a kind of failure. It is part of the API: programs branch on it.
type Code string

// The codes of the API.
const (
	CodeBadRequest   Code = "bad_request"      // the request itself is wrong
	CodeTooLarge     Code = "too_large"        // the request's body is over [MaxBody]
	CodeForbidden    Code = "forbidden"        // the caller's user may not do this
	CodeVersion      Code = "version_mismatch" // client and daemon are of different versions
	CodeNotFound     Code = "not_found"        // no device of that name
	CodeNameTaken    Code = "name_taken"       // there is a device or layer of that name
	CodeIDTaken      Code = "id_taken"         // the kernel has a device of that number
	CodeBusy         Code = "busy"             // another operation runs on the device
	CodeInUse        Code = "in_use"           // the device, layer or store is in use
	CodeBadRoot      Code = "bad_root"         // the root image cannot be used
	CodeBadLeaf      Code = "bad_leaf"         // the leaf store cannot be used
	CodeNotFormatted Code = "not_formatted"    // the leaf is no store
	CodeOtherRoot    Code = "other_root"       // the layer stands on another root
	CodeUntrusted    Code = "untrusted"        // the root is not signed as this machine demands
	CodeCorrupt      Code = "corrupt"          // the store is damaged
	CodeNoSpace      Code = "no_space"         // the store has too little space for it
	CodeNoDriver     Code = "no_driver"        // the kernel has no ublk driver
	CodeTimeout      Code = "timeout"          // the operation took too long
	CodeNotMeasured  Code = "not_measured"     // no eBPF programs are loaded
	CodeStopping     Code = "stopping"         // the daemon is on its way out
	CodeFailed       Code = "failed"           // anything else
)

// Error is a failure as the API reports it.
type Error struct {
	Code    Code   `json:"code"`
	Message string `json:"message"`        // what was tried and what went wrong
	Hint    string `json:"hint,omitempty"` // what to do about it
	cause   error
}

// Error returns the message without the hint.
func (e *Error) Error() string { return e.Message }

// Unwrap returns the cause, which does not travel over the socket.
func (e *Error) Unwrap() error { return e.cause }

// HintOf returns what to do about err, or "" where nothing is known.
func HintOf(err error) string {
	var e *Error
	if errors.As(err, &e) {
		return e.Hint
	}
	return ""
}

// CodeOf returns the code of err: [CodeFailed] where it carries none.
func CodeOf(err error) Code {
	var e *Error
	if errors.As(err, &e) {
		return e.Code
	}
	return CodeFailed
}

func fail(code Code, hint, format string, args ...any) *Error {
	err := fmt.Errorf(format, args...)
	return &Error{Code: code, Message: err.Error(), Hint: hint, cause: errors.Unwrap(err)}
}

// statuses maps codes to HTTP; what is not listed is 500.
var statuses = map[Code]int{
	CodeBadRequest:   http.StatusBadRequest,
	CodeTooLarge:     http.StatusRequestEntityTooLarge,
	CodeForbidden:    http.StatusForbidden,
	CodeVersion:      http.StatusPreconditionFailed,
	CodeNotFound:     http.StatusNotFound,
	CodeNameTaken:    http.StatusConflict,
	CodeIDTaken:      http.StatusConflict,
	CodeBusy:         http.StatusConflict,
	CodeInUse:        http.StatusConflict,
	CodeBadRoot:      http.StatusUnprocessableEntity,
	CodeBadLeaf:      http.StatusUnprocessableEntity,
	CodeNotFormatted: http.StatusUnprocessableEntity,
	CodeOtherRoot:    http.StatusUnprocessableEntity,
	CodeUntrusted:    http.StatusUnprocessableEntity,
	CodeCorrupt:      http.StatusUnprocessableEntity,
	CodeNoSpace:      http.StatusInsufficientStorage,
	CodeNoDriver:     http.StatusServiceUnavailable,
	CodeNotMeasured:  http.StatusServiceUnavailable,
	CodeStopping:     http.StatusServiceUnavailable,
	CodeTimeout:      http.StatusGatewayTimeout,
}

func statusOf(code Code) int {
	if s, ok := statuses[code]; ok {
		return s
	}
	return http.StatusInternalServerError
}

// Explain gives err a code and a hint from the sentinel it wraps. An *Error inside
// keeps both, with the words around it. err is not nil.
func Explain(err error) *Error {
	found := &Error{Code: CodeFailed, Message: oneLine(err), cause: err}
	var e *Error
	if errors.As(err, &e) {
		found.Code, found.Hint = e.Code, e.Hint
		return found
	}
	for _, c := range causes {
		if errors.Is(err, c.is) {
			found.Code, found.Hint = c.code, c.hint
			break
		}
	}
	return found
}

// oneLine is the text of err without the line breaks of joined errors.
func oneLine(err error) string { return strings.ReplaceAll(err.Error(), "\n", "; ") }

// causes is searched in order: specific sentinels before the errno they may wrap.
var causes = []struct {
	is   error
	code Code
	hint string
}{
	{ublk.ErrNoDriver, CodeNoDriver, "load the module: modprobe ublk_drv; `coppice doctor` says which package brings it"},
	{ublk.ErrPermission, CodeForbidden, "run the daemon as root, with CAP_SYS_ADMIN and access to /dev/ublk-control"},
	{ublk.ErrIDTaken, CodeIDTaken, "choose another --id, or leave it out"},
	{ublk.ErrUnsupported, CodeNoDriver, "use a newer kernel; `coppice doctor` says what this one lacks"},
	{ublk.ErrInUse, CodeInUse, "unmount it or close what has it open, then try again"},
	{union.ErrNotFormatted, CodeNotFormatted, "format it first: coppice store format STORE"},
	{union.ErrOtherRoot, CodeOtherRoot, "give the root that the layer was made on, or choose another layer: --leaf STORE:LAYER"},
	{union.ErrRoot, CodeBadRoot, "see to it that the root can be read, then try again"},
	{union.ErrLayerInUse, CodeInUse, "choose another layer (--leaf STORE:LAYER) or delete the device that uses it"},
	{union.ErrInUse, CodeInUse, "unmount it, or stop the process that has it open"},
	{union.ErrCorrupt, CodeCorrupt, "nothing was written; `coppice store check STORE` tells what is damaged"},
	{union.ErrNoLayer, CodeBadLeaf, "`coppice store info STORE` lists the layers"},
	{union.ErrSealed, CodeBadLeaf, "a sealed layer never changes: make a new one on it, with --from LAYER and another --leaf STORE:LAYER"},
	{union.ErrNotSealed, CodeBadLeaf, "seal what its device holds first: coppice freeze NAME --as LAYER, then --from LAYER"},
	{union.ErrLayerExists, CodeNameTaken, "choose another name; `coppice store info STORE` lists the layers"},
	{union.ErrTooSmall, CodeBadLeaf, "give it the size that it needs or once had, or use another partition or file"},
	{union.ErrLeased, CodeInUse, "stop its daemon there; if that node is lost for good, break its lease first: coppice store break-lease STORE"},
	{union.ErrNotLeased, CodeBadRequest, "open it: there is nothing to break"},
	{union.ErrFenced, CodeInUse, "restart the daemon, if no other node has the store now"},
	{union.ErrNoSpace, CodeNoSpace, "make the store larger (coppice store grow STORE), or remove layers that nobody needs"},
	{union.ErrNearlyFull, CodeNoSpace, "what is overwritten after a freeze takes new space: make the store larger first (coppice store grow STORE), or go on with --force"},
	{union.ErrCannotShrink, CodeBadRequest, "leave --size away to take up all there is, or give more than the store has"},
	{union.ErrNotEmpty, CodeInUse, "choose another target, or overwrite all that is on it with --force"},
	{union.ErrVersion, CodeBadLeaf, "use the version of coppice that formatted it"},
	{union.ErrReadOnly, CodeBadLeaf, "give a store that can be written"},
	{context.DeadlineExceeded, CodeTimeout, "try again, with a larger operation_seconds in coppice.toml if need be; the daemon's log says more"},
	{context.Canceled, CodeStopping, "try again"},
	{syscall.ENOSPC, CodeBadLeaf, "use a larger store, or delete layers that nobody needs"},
	{fs.ErrNotExist, CodeFailed, "check the path"},
	{fs.ErrPermission, CodeForbidden, "check the permissions of the path; the daemon needs root"},
}
