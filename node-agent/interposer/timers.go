package main

import (
	"errors"
	"os"
	"path/filepath"
	"syscall"
)

// images/fdinfo.proto and timerfd.proto of CRIU 4.2.
const (
	filesMagic     = 0x56303138
	fileTimer      = 12 // a file_entry's timerfd_entry
	timerTicks     = 5
	timerFlags     = 6
	timerValueSec  = 7
	timerValueNsec = 8
	timerEverySec  = 9
	timerEveryNsec = 10
	timerAbsolute  = 1 // TFD_TIMER_ABSTIME alone
)

// patch is a byte to be written into an image.
type patch struct {
	at    int64
	value byte
}

// mendTimers changes two things in the images of a process's timerfds that CRIU would restore otherwise than they were.
//
// A periodic timer that is due and has not been read has no time left, and to arm a timer with no time is to disarm it: it
// gets a nanosecond. And what the images say of an absolute timer is the time that was left, to which CRIU adds the
// seconds of the clock: it would ring up to a second early, or once more when it is not armed at all. As a relative one it
// rings after the time that was left. A second time there is nothing to change.
func mendTimers(images string) error {
	path := filepath.Join(images, "files.img")
	entries, err := readImage(path, filesMagic)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	var patches []patch
	at := 8
	for _, entry := range entries {
		at += 4
		err := eachField(entry, func(it field) error {
			if it.number != fileTimer || it.data == nil {
				return nil
			}
			found, err := timerPatches(it.data, int64(at+it.at))
			patches = append(patches, found...)
			return err
		})
		if err != nil {
			return err
		}
		at += len(entry)
	}
	return applyPatches(path, patches)
}

func timerPatches(timer []byte, offset int64) ([]patch, error) {
	values, where := fields{}, map[uint64]int{}
	err := eachField(timer, func(it field) error {
		values[it.number], where[it.number] = it.value, it.at
		return nil
	})
	if err != nil {
		return nil, err
	}
	var found []patch
	replace := func(number uint64, old, new byte) {
		if at, ok := where[number]; ok && timer[at] == old {
			found = append(found, patch{offset + int64(at), new})
		}
	}
	if values[timerFlags] == timerAbsolute {
		replace(timerFlags, timerAbsolute, 0)
	}
	periodic := values[timerEverySec]|values[timerEveryNsec] != 0
	if values[timerValueSec]|values[timerValueNsec] == 0 && periodic && values[timerTicks] != 0 {
		replace(timerValueNsec, 0, 1)
	}
	return found, nil
}

// applyPatches writes single bytes: however it is interrupted, the image is one.
func applyPatches(path string, patches []patch) error {
	if len(patches) == 0 {
		return nil
	}
	file, err := os.OpenFile(path, os.O_WRONLY|syscall.O_NOFOLLOW, 0)
	if err != nil {
		return err
	}
	for _, it := range patches {
		if _, err := file.WriteAt([]byte{it.value}, it.at); err != nil {
			return errors.Join(err, file.Close())
		}
	}
	return file.Close()
}
