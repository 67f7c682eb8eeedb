// Package tour is what the Go programs of the matrix share: the texts, and how a check reports. See checks.toml.
package tour

import (
	"bufio"
	"encoding/json"
	"fmt"
	"os"
	"runtime/debug"
	"strings"
)

// The texts of checks.toml and the beginning of the names of the program's tables.
var (
	Prefix              = "storage." + os.Getenv("TABLE_PREFIX")
	ForeignWrite        = os.Getenv("FOREIGN_WRITE")
	ForeignWriteMessage = os.Getenv("FOREIGN_WRITE_MESSAGE")
	Long                = os.Getenv("LONG")
	Stream              = os.Getenv("STREAM")
	Wide                = os.Getenv("WIDE")
)

// People is how many dl_resolved.people has.
const People = 4980

func emit(members map[string]string) {
	line, _ := json.Marshal(members)
	fmt.Println(string(line))
}

// Driver says which driver this is.
func Driver(name, version string) { emit(map[string]string{"driver": name, "version": version}) }

// NotApplicable says why a check is none for this driver.
func NotApplicable(check, why string) {
	emit(map[string]string{"check": check, "result": "not applicable", "why": why})
}

// Check runs a check; what panics in it has failed, and the next one goes on.
func Check(name string, run func()) {
	defer func() {
		if failure := recover(); failure != nil {
			emit(map[string]string{"check": name, "result": "failed", "why": fmt.Sprint(failure, "\n", string(debug.Stack()))})
		}
	}()
	run()
	emit(map[string]string{"check": name, "result": "ok"})
}

// Rotate has the login's password rotated and gives the new one.
func Rotate() string {
	emit(map[string]string{"ask": "rotate"})
	line, err := bufio.NewReader(os.Stdin).ReadString('\n')
	Must(err)
	return strings.TrimSpace(line)
}

// Must panics with an error.
func Must(err error) {
	if err != nil {
		panic(err)
	}
}

// Equal panics unless both are printed alike.
func Equal(got, want interface{}) {
	if g, w := fmt.Sprintf("%v", got), fmt.Sprintf("%v", want); g != w {
		panic(fmt.Sprintf("got %s, wanted %s", g, w))
	}
}
