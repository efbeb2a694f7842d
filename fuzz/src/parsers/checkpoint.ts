/** `checkpoint`: signed notes, verifier keys and head MACs. Only the text that was signed is accepted, and only as it was signed. */
import { createHash } from 'node:crypto';
import { auditCheckpoint, checkpointText, checkpointVerifier, headMacOf, signCheckpoint, verifierKey, verifyCheckpoint, type Checkpoint, type CheckpointVerifier } from '@keyguard/core/checkpoint';
import type { CheckpointSigner } from '@keyguard/core/seams';
import type { Generator } from '../generator.ts';
import { mutateList, mutateText } from '../mutate.ts';
import { agree, demand, demandEqual, isUnicode, outcomeOf, outcomeOfLater, type Parser } from '../parser.ts';

const REFUSED = 'RejectedError checkpoint_invalid';
const ORIGIN = 'keyguard.test/audit/2026';

async function newSigner(): Promise<CheckpointSigner> {
  const { privateKey, publicKey } = (await crypto.subtle.generateKey('Ed25519', true, ['sign', 'verify'])) as CryptoKeyPair;
  return {
    publicKey: new Uint8Array(await crypto.subtle.exportKey('raw', publicKey)),
    sign: async (data) => new Uint8Array(await crypto.subtle.sign('Ed25519', privateKey, data)),
  };
}

const signer = await newSigner();
const KEY = await verifierKey(ORIGIN, signer.publicKey);
const OTHER_KEY = await verifierKey('witness.example', (await newSigner()).publicKey);
const verifier = await checkpointVerifier(KEY);

const CHECKPOINTS: readonly Checkpoint[] = [
  auditCheckpoint({ origin: ORIGIN, size: 1000, root: new Uint8Array(32).fill(7), headMac: new Uint8Array(32).fill(9) }),
  { origin: ORIGIN, size: 0, root: new Uint8Array(32), extensions: [] },
  { origin: ORIGIN, size: 2 ** 53 - 1, root: new Uint8Array(32).fill(255), extensions: ['one', 'zwei \u00e9', ' '] },
];
const NOTES: readonly string[] = await Promise.all(CHECKPOINTS.map((checkpoint) => signCheckpoint(checkpoint, signer)));

const WORDS = ['\n\n', '\n', '\u2014 ', '- ', '\u2014 witness.example AAAAAAAA\n', `\u2014 ${ORIGIN} `, '+', '01', '-1', '9007199254740992', '\r\n', '\u2028', 'AAAA', '='] as const;

function mutateNote(random: Generator): { readonly of: number; readonly note: string } {
  const of = random.below(NOTES.length);
  const original = NOTES[of]!;
  if (random.oneIn(3)) {
    const lines = mutateList(random, original.split('\n'), (line) => mutateText(random, line, WORDS), () => random.pick(random.pick(NOTES).split('\n')));
    return { of, note: lines.join('\n') };
  }
  return { of, note: random.oneIn(8) ? original : mutateText(random, original, WORDS) };
}

/** Text and signature lines of a note, as C2SP divides it. */
function divide(note: string): { readonly text: string; readonly lines: readonly string[] } {
  const at = note.lastIndexOf('\n\n') + 1;
  return { text: note.slice(0, at), lines: note.slice(at + 1).split('\n').slice(0, -1) };
}

const SIGNATURES = NOTES.map((note) => divide(note).lines[0]!);

// Takes any 64 bytes for a signature: what is left is how a note is read.
const gullible: CheckpointVerifier = { name: verifier.name, keyHash: verifier.keyHash, verify: async () => true };

function isSignatureLine(line: string): boolean {
  const [dash, name, base64, ...rest] = line.split(' ');
  const bytes = Buffer.from(base64 ?? '', 'base64');
  return dash === '\u2014' && name !== '' && rest.length === 0 && bytes.length > 4 && bytes.toString('base64') === base64;
}

const HEAD_MAC = 'keyguard-head-mac ';

export const CHECKPOINT: readonly Parser[] = [
  {
    name: 'checkpoint.verifyCheckpoint',
    async try(random) {
      const { of, note } = mutateNote(random);
      const outcome = await outcomeOfLater(() => verifyCheckpoint(note, [verifier]), REFUSED);
      if (outcome.accepted) {
        const { text, lines } = divide(note);
        const signed = NOTES.findIndex((each) => divide(each).text === text);
        demand(signed !== -1 && lines.includes(SIGNATURES[signed]!), 'accepted what was not signed');
        demandEqual(outcome.value, CHECKPOINTS[signed], 'the checkpoint');
      } else {
        demand(note !== NOTES[of], 'refused what was signed');
      }
      return outcome.accepted ? 'accepted' : 'refused';
    },
  },
  {
    name: 'checkpoint.verifyCheckpoint, any signature',
    async try(random) {
      const { of, note } = mutateNote(random);
      const outcome = await outcomeOfLater(() => verifyCheckpoint(note, [gullible]), REFUSED);
      if (!outcome.accepted) {
        demand(note !== NOTES[of], 'refused what was signed');
        return 'refused';
      }
      const { text, lines } = divide(note);
      demand(checkpointText(outcome.value) === text, 'read another text than it would write');
      demand(note === `${text}\n${lines.map((line) => `${line}\n`).join('')}` && lines.every(isSignatureLine), 'accepted what is no note');
      const own = `\u2014 ${verifier.name} ${Buffer.from(verifier.keyHash).toString('base64').slice(0, 5)}`;
      demand(lines.filter((line) => line.startsWith(own) && Buffer.from(line.split(' ')[2]!, 'base64').length === 68).length === 1, 'accepted without a signature by the key');
      return 'accepted';
    },
  },
  {
    name: 'checkpoint.checkpointVerifier',
    async try(random) {
      const original = random.pick([KEY, OTHER_KEY]);
      const text = mutateText(random, original, ['+', '++', '00000000', 'A'.repeat(44), '\u00e9', '\u00a0']);
      const outcome = await outcomeOfLater(() => checkpointVerifier(text), 'UsageError invalid_option');
      const [name = '', hash, ...rest] = text.split('+');
      const keyText = rest.join('+');
      const data = Buffer.from(keyText, 'base64');
      const expected = createHash('sha256').update(`${name}\n`).update(data).digest('hex').slice(0, 8);
      const isKey = data.length === 33 && data[0] === 1 && data.toString('base64') === keyText && hash === expected;
      const isName = name !== '' && isUnicode(name) && ![...name].some((letter) => letter < ' ' || /\p{White_Space}/u.test(letter));
      if (outcome.accepted) demandEqual([outcome.value.name, Buffer.from(outcome.value.keyHash).toString('hex')], [name, hash], 'the key');
      // No one can make another text whose hash fits; so what is accepted here is nearly always the original.
      return agree(outcome.accepted, isKey && isName);
    },
  },
  {
    name: 'checkpoint.headMacOf',
    try(random) {
      const mac = Buffer.from(random.bytes(32)).toString('base64');
      const extensions = mutateList(random, [`${HEAD_MAC}${mac}`], (line) => mutateText(random, line, ['=', ' ']), () => random.pick(['other', HEAD_MAC, `${HEAD_MAC}${mac}`]));
      const outcome = outcomeOf(() => headMacOf({ ...CHECKPOINTS[1]!, extensions }), REFUSED);
      const own = extensions.filter((line) => line.startsWith(HEAD_MAC)).map((line) => line.slice(HEAD_MAC.length));
      const bytes = Buffer.from(own[0] ?? '', 'base64');
      const isMac = own.length === 1 && bytes.length === 32 && bytes.toString('base64') === own[0];
      if (outcome.accepted) demandEqual(outcome.value, isMac ? new Uint8Array(bytes) : null, 'the MAC');
      return agree(outcome.accepted, isMac || own.length === 0);
    },
  },
];
