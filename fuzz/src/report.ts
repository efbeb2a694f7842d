/** The counts of a run as benchmarks/FUZZING.md. */

export interface Result {
  readonly name: string;
  readonly accepted: number;
  readonly refused: number;
  readonly wrong: number;
  readonly seconds: number;
  readonly slowestMs: number;
}

export interface Circumstances {
  readonly commit: string;
  readonly machine: string;
  readonly node: string;
  readonly date: string;
  readonly seed: number;
  readonly inputs: number;
}

const group = (n: number): string => n.toLocaleString('en-GB');

/** The page, from its first line to its last. */
export function renderMarkdown(results: readonly Result[], { commit, machine, node, date, seed, inputs }: Circumstances): string {
  const rows = results.map(({ name, accepted, refused, wrong, slowestMs }) => `| \`${name}\` | ${group(accepted + refused)} | ${group(accepted)} | ${group(refused)} | ${wrong} | ${slowestMs.toFixed(1)} |`);
  const total = results.reduce((sum, { accepted, refused }) => sum + accepted + refused, 0);
  const wrong = results.reduce((sum, result) => sum + result.wrong, 0);
  return `# Fuzzing: what was tried on every parser

\`\`\`
pnpm fuzz                                  # a million inputs to each parser; splits over the cores
pnpm fuzz --inputs=50000 --only=vault      # fewer, and only the parsers whose name holds the word
pnpm fuzz --seed=${String(seed).padEnd(25)} # the same inputs again
\`\`\`

Every function of \`core\`, of \`server-verifier\` (on whose doors all adapters stand), of the audit verifier and of the service's
gateway that reads untrusted text or bytes is given valid inputs with a few changes that fit their structure (bits, characters, members, lines, whole fields out of other valid
inputs), and random ones. What must hold of each input:

- a refusal is one that the function's documentation names, by class and code, and nothing else is ever thrown;
- what is accepted is right in the eyes of an **oracle that shares no code** with the parser: Node's Buffer, JSON, URL, forms, \`net\` and
  \`crypto\`, the \`canonicalize\` library, the definitions of RFC 6962, the equation of the curve, a second reading of the
  specification, and, for whatever is signed or sealed, the original, byte for byte. Where the oracle decides both ways, a
  refusal of what is right counts as wrong too;
- no input takes longer than a second (three times in a row: the machine may be busy).

Passphrases are stretched by one HMAC in place of PBKDF2 while their header is fuzzed, or a million would take a day. Each input is
made from the seed, the parser's name and its number alone; a failure prints the command that repeats it. The test command gives
each parser some thousand inputs under a new seed (\`fuzz/test\`), and CI more. What was found so far is in
[CHANGELOG.md](../CHANGELOG.md), under *Fixed*.

## The run

${group(inputs)} inputs to each of ${results.length} parsers, ${group(total)} in all, **${wrong} wrong**. Seed ${seed}; commit \`${commit}\`; ${date}; ${machine}; Node ${node}.
"Slowest" is of one input, generation and judgement included, on a machine that did other work at the time.

| parser | inputs | accepted | refused | wrong | slowest, ms |
| --- | ---: | ---: | ---: | ---: | ---: |
${rows.join('\n')}
`;
}
