// Lists tars as Go's archive/tar reads them. Standard input holds tars, each after its length (32 bits, little-endian);
// for each a line "case", then a line for each entry and, if reading failed, a line "error".
package main

import (
	"archive/tar"
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"io"
	"os"
	"strings"
)

var kinds = map[byte]int{'0': 1, 0: 1, '7': 1, 'S': 1, '1': 4, '2': 3, '3': 5, '4': 6, '5': 2, '6': 7}

func main() {
	in, out := bufio.NewReader(os.Stdin), bufio.NewWriter(os.Stdout)
	defer out.Flush()
	for {
		var length uint32
		if binary.Read(in, binary.LittleEndian, &length) != nil {
			return
		}
		data := make([]byte, length)
		if _, err := io.ReadFull(in, data); err != nil {
			panic(err)
		}
		fmt.Fprintln(out, "case")
		list(out, tar.NewReader(bytes.NewReader(data)))
	}
}

func list(out io.Writer, archive *tar.Reader) {
	for {
		h, err := archive.Next()
		if err == io.EOF {
			return
		}
		if err != nil {
			fmt.Fprintln(out, "error")
			return
		}
		if h.Typeflag == tar.TypeXGlobalHeader {
			continue
		}
		content, size, link := "-", int64(0), ""
		switch kinds[h.Typeflag] {
		case 1:
			hash := sha256.New()
			if size, err = io.Copy(hash, archive); err != nil {
				fmt.Fprintln(out, "error")
				return
			}
			content = fmt.Sprintf("%x", hash.Sum(nil))
		case 3, 4:
			link = h.Linkname
		}
		name := strings.TrimRight(h.Name, "/")
		fmt.Fprintf(out, "%d %x %o %d %d %d %d %x %s\n", kinds[h.Typeflag], name, h.Mode&07777, h.Uid, h.Gid,
			h.ModTime.Unix(), size, link, content)
	}
}
