// Judges proofs and checkpoints with golang.org/x/mod/sumdb, which shares nothing with our code. Reads a JSON list of questions
// from standard input and answers each with a JSON object on standard output. Byte strings are hexadecimal.
package main

import (
	"crypto/ed25519"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"os"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"
)

type question struct {
	Ask     string   `json:"ask"`
	Leaves  []string `json:"leaves"`
	Leaf    string   `json:"leaf"`
	Index   int64    `json:"index"`
	Size    int64    `json:"size"`
	Root    string   `json:"root"`
	OldSize int64    `json:"oldSize"`
	OldRoot string   `json:"oldRoot"`
	NewSize int64    `json:"newSize"`
	NewRoot string   `json:"newRoot"`
	Proof   []string `json:"proof"`
	Name    string   `json:"name"`
	Public  string   `json:"publicKey"`
	Seed    string   `json:"seed"`
	Text    string   `json:"text"`
	Note    string   `json:"note"`
	Keys    []string `json:"keys"`
}

type answer struct {
	Ok     bool     `json:"ok"`
	Error  string   `json:"error,omitempty"`
	Text   string   `json:"text,omitempty"`
	Note   string   `json:"note,omitempty"`
	Root   string   `json:"root,omitempty"`
	Proof  []string `json:"proof,omitempty"`
	Signed []string `json:"signed,omitempty"`
}

func unhex(text string) []byte {
	data, err := hex.DecodeString(text)
	if err != nil {
		panic(err)
	}
	return data
}

func hash(text string) (h tlog.Hash) {
	if copy(h[:], unhex(text)) != tlog.HashSize {
		panic("not a hash")
	}
	return h
}

func hashes(texts []string) (list []tlog.Hash, ok bool) {
	for _, text := range texts {
		if len(text) != 2*tlog.HashSize {
			return nil, false
		}
		list = append(list, hash(text))
	}
	return list, true
}

func texts(list []tlog.Hash) (out []string) {
	for _, h := range list {
		out = append(out, hex.EncodeToString(h[:]))
	}
	return out
}

func store(leaves []string) tlog.HashReader {
	var stored []tlog.Hash
	reader := tlog.HashReaderFunc(func(indexes []int64) ([]tlog.Hash, error) {
		var list []tlog.Hash
		for _, index := range indexes {
			list = append(list, stored[index])
		}
		return list, nil
	})
	for i, leaf := range leaves {
		added, err := tlog.StoredHashes(int64(i), unhex(leaf), reader)
		if err != nil {
			panic(err)
		}
		stored = append(stored, added...)
	}
	return reader
}

func verdict(err error) answer {
	if err != nil {
		return answer{Error: err.Error()}
	}
	return answer{Ok: true}
}

func judge(q question) answer {
	switch q.Ask {
	case "inclusion":
		proof, ok := hashes(q.Proof)
		if !ok {
			return answer{Error: "not a hash"}
		}
		return verdict(tlog.CheckRecord(proof, q.Size, hash(q.Root), q.Index, tlog.RecordHash(unhex(q.Leaf))))
	case "consistency":
		proof, ok := hashes(q.Proof)
		if !ok {
			return answer{Error: "not a hash"}
		}
		return verdict(tlog.CheckTree(proof, q.NewSize, hash(q.NewRoot), q.OldSize, hash(q.OldRoot)))
	case "root":
		root, err := tlog.TreeHash(q.Size, store(q.Leaves))
		a := verdict(err)
		a.Root = hex.EncodeToString(root[:])
		return a
	case "prove-inclusion":
		proof, err := tlog.ProveRecord(q.Size, q.Index, store(q.Leaves))
		a := verdict(err)
		a.Proof = texts(proof)
		return a
	case "prove-consistency":
		proof, err := tlog.ProveTree(q.NewSize, q.OldSize, store(q.Leaves))
		a := verdict(err)
		a.Proof = texts(proof)
		return a
	case "verifier-key":
		key, err := note.NewEd25519VerifierKey(q.Name, ed25519.PublicKey(unhex(q.Public)))
		a := verdict(err)
		a.Text = key
		return a
	case "sign":
		seed := unhex(q.Seed)
		public := ed25519.NewKeyFromSeed(seed).Public().(ed25519.PublicKey)
		vkey, err := note.NewEd25519VerifierKey(q.Name, public)
		if err != nil {
			return verdict(err)
		}
		verifier, err := note.NewVerifier(vkey)
		if err != nil {
			return verdict(err)
		}
		skey := fmt.Sprintf("PRIVATE+KEY+%s+%08x+%s", q.Name, verifier.KeyHash(), base64.StdEncoding.EncodeToString(append([]byte{1}, seed...)))
		signer, err := note.NewSigner(skey)
		if err != nil {
			return verdict(err)
		}
		signed, err := note.Sign(&note.Note{Text: q.Text}, signer)
		a := verdict(err)
		a.Note = string(signed)
		return a
	case "open":
		var verifiers []note.Verifier
		for _, key := range q.Keys {
			verifier, err := note.NewVerifier(key)
			if err != nil {
				return verdict(err)
			}
			verifiers = append(verifiers, verifier)
		}
		opened, err := note.Open([]byte(q.Note), note.VerifierList(verifiers...))
		if err != nil {
			return verdict(err)
		}
		a := answer{Ok: true, Text: opened.Text}
		for _, signature := range opened.Sigs {
			a.Signed = append(a.Signed, fmt.Sprintf("%s+%08x", signature.Name, signature.Hash))
		}
		return a
	}
	return answer{Error: "unknown question"}
}

func main() {
	var questions []question
	if err := json.NewDecoder(os.Stdin).Decode(&questions); err != nil {
		panic(err)
	}
	answers := []answer{}
	for _, q := range questions {
		answers = append(answers, judge(q))
	}
	if err := json.NewEncoder(os.Stdout).Encode(answers); err != nil {
		panic(err)
	}
}
