package configs

import (
	"errors"
	"fmt"
	"strings"

	"github.com/goccy/go-yaml"
	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/parser"
)

// reader turns the raw file into a Config and collects what is wrong.
type reader struct {
	file   string
	tree   *ast.File
	errs   []error
	listen map[string]string // paths, by the addresses that are listened on
}

// decode reads the file. The YAML library panics at some of what is no YAML.
func (r *reader) decode(b []byte, in any) (err error) {
	defer func() {
		if recover() != nil {
			err = errors.New("it is not YAML: perhaps a \"!\", \"&\" or \"*\" with nothing behind it; quote text that has them")
		}
	}()
	if r.tree, err = parser.ParseBytes(b, 0); err != nil {
		return err
	}
	if len(r.tree.Docs) > 1 {
		return errors.New("there is more than one document in it: what is behind \"---\" would not be read")
	}
	return yaml.UnmarshalWithOptions(b, in, yaml.Strict())
}

// syntax turns an error of the YAML library into ours.
func (r *reader) syntax(err error) error {
	e := &Error{File: r.file, Message: err.Error()}
	var y yaml.Error
	if errors.As(err, &y) {
		e.Message = y.GetMessage()
		if t := y.GetToken(); t != nil && t.Position != nil {
			e.Line, e.Column = t.Position.Line, t.Position.Column
			if strings.HasPrefix(e.Message, "unknown field") {
				e.Message = fmt.Sprintf("unknown key %q", t.Value)
				if s := suggest(t.Value); s != "" {
					e.Message += fmt.Sprintf(": did you mean %q?", s)
				}
			} else if wanted := wanted(e.Message); wanted != "" {
				e.Message = fmt.Sprintf("%q: %s is wanted here", t.Value, wanted)
			}
		}
	}
	return e
}

// wanted returns what should stand where the YAML library found something else; "" if
// its message says something else.
func wanted(message string) string {
	if !strings.HasPrefix(message, "cannot unmarshal") {
		return ""
	}
	_, kind, _ := strings.Cut(message, " of type ")
	switch kind = strings.TrimLeft(kind, "*"); {
	case strings.HasPrefix(kind, "uint"):
		return "a whole number that is not negative, and not too large,"
	case strings.HasPrefix(kind, "int"):
		return "a whole number that is not too large"
	case strings.HasPrefix(kind, "float"):
		return "a number"
	case strings.HasPrefix(kind, "bool"):
		return "true or false"
	case strings.HasPrefix(kind, "string"):
		return "text"
	case strings.HasPrefix(kind, "["):
		return "a list"
	case kind != "":
		return "a group of keys"
	}
	return ""
}

// fail notes what is wrong at a path like "feeds[0].name".
func (r *reader) fail(path, format string, args ...any) {
	e := &Error{File: r.file, Message: strings.TrimPrefix(path+": "+fmt.Sprintf(format, args...), ": ")}
	for p := path; p != ""; p = p[:max(strings.LastIndexAny(p, ".["), 0)] {
		y, err := yaml.PathString("$." + p)
		if err != nil {
			continue
		}
		if node, err := y.FilterFile(r.tree); err == nil && node.GetToken() != nil {
			e.Line, e.Column = node.GetToken().Position.Line, node.GetToken().Position.Column
			break
		}
	}
	r.errs = append(r.errs, e)
}
