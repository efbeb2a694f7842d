/**
 * `verify <export.jsonl> --key <verifier key> --checkpoint <file> …`: verifies an export of an audit log on the command line.
 *
 * Ends with 0 where the log is intact, 1 where it was attacked, 2 where nothing can be said: an export or an option that cannot
 * be read, or no checkpoint that vouches for the log.
 */
import { createHash } from 'node:crypto';
import { open, readFile } from 'node:fs/promises';
import { resolve } from 'node:path';
import { parseArgs } from 'node:util';
import { hasCode } from '@keyguard/core/errors';
import { linesOf, UnreadableExport } from '../export.ts';
import { readMacKeys, readVerifierKeys, UnreadableInput } from '../keys.ts';
import { reportText } from '../report.ts';
import { verifyExport, type Report } from '../verify.ts';

const USAGE = `Usage: verify <export.jsonl> --key <verifier key> --checkpoint <file> [options]

  --key <text>         a public verifier key, <origin>+<hash>+<base64>; may be given more than once
  --key-file <file>    the same, one a line
  --checkpoint <file>  a signed note that was kept elsewhere; may be given more than once
  --mac-keys <file>    MAC keys, <key id>=<base64>, one a line: names the entry. Secret!
  --json               the report as JSON
`;

const primitives = { sha256: (data: Uint8Array): Uint8Array<ArrayBuffer> => new Uint8Array(createHash('sha256').update(data).digest()) };

// A package manager runs this in the folder of the package, and says where it was called from.
const at = (path: string): string => resolve(process.env['INIT_CWD'] ?? '', path);

async function run(): Promise<Report> {
  const { values, positionals } = parseArgs({
    allowPositionals: true,
    options: {
      key: { type: 'string', multiple: true, default: [] },
      'key-file': { type: 'string' },
      checkpoint: { type: 'string', multiple: true, default: [] },
      'mac-keys': { type: 'string' },
      json: { type: 'boolean', default: false },
    },
  });
  const [path, ...others] = positionals;
  if (path === undefined || others.length > 0) throw new UnreadableInput('Give one export.');
  const keyFile = values['key-file'] === undefined ? '' : await readFile(at(values['key-file']), 'utf8');
  const verifierKeys = [...values.key, ...readVerifierKeys(keyFile)];
  if (verifierKeys.length === 0) throw new UnreadableInput('Give the public key of the log: --key.');
  const macKeys = await readMacKeys(values['mac-keys'] === undefined ? '' : await readFile(at(values['mac-keys']), 'utf8'));
  const checkpoints = await Promise.all(values.checkpoint.map(async (name) => ({ name, note: await readFile(at(name), 'utf8') })));
  // Opened before anything else can fail: a stream by name would report a missing file to nobody, and end this process with 1.
  await using file = await open(at(path));
  const report = await verifyExport({ lines: linesOf(file.createReadStream({ autoClose: false })), checkpoints, verifierKeys, macKeys, primitives });
  process.stdout.write(values.json ? `${JSON.stringify(report, null, 2)}\n` : reportText(report));
  return report;
}

const OURS = new Set<unknown>(['ENOENT', 'EACCES', 'EISDIR', 'ERR_PARSE_ARGS_UNKNOWN_OPTION', 'ERR_PARSE_ARGS_INVALID_OPTION_VALUE']);

try {
  const { verdict } = await run();
  process.exitCode = { intact: 0, attacked: 1, unproven: 2 }[verdict];
} catch (error) {
  const { message, code } = error as Error & { code?: unknown };
  const isExpected = error instanceof UnreadableExport || error instanceof UnreadableInput || hasCode(error, 'invalid_option') || OURS.has(code);
  if (!isExpected) throw error;
  process.stderr.write(`Nothing was verified: ${message}\n${error instanceof UnreadableExport ? '' : `\n${USAGE}`}`);
  process.exitCode = 2;
}
