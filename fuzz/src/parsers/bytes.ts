/** `bytes`: the strict decoders, against Node's own lenient ones and what they write. */
import { isUtf8 } from 'node:buffer';
import { fromBase64, fromBase64Url, fromUtf8, toBase64, toBase64Url } from '@keyguard/core/bytes';
import type { Bytes } from '@keyguard/core/seams';
import type { Generator } from '../generator.ts';
import { lengthOf, mutateBytes, mutateText, randomText } from '../mutate.ts';
import { agree, demand, demandEqual, outcomeOf, type Parser, type Verdict } from '../parser.ts';

type Encoding = 'base64' | 'base64url';

function tryDecoder(random: Generator, decode: (text: string) => Bytes | null, encode: (bytes: Bytes) => string, encoding: Encoding): Verdict {
  const original = random.bytes(lengthOf(random));
  const valid = Buffer.from(original).toString(encoding);
  demand(encode(original) === valid, 'wrote another text than Node');
  const text = mutateText(random, valid);
  const bytes = decode(text);
  const node = Buffer.from(text, encoding);
  if (bytes !== null) demandEqual(Buffer.from(bytes), node, 'the decoded value');
  return agree(bytes !== null, node.toString(encoding) === text);
}

export const BYTES: readonly Parser[] = [
  { name: 'bytes.fromBase64', try: (random) => tryDecoder(random, fromBase64, toBase64, 'base64') },
  { name: 'bytes.fromBase64Url', try: (random) => tryDecoder(random, fromBase64Url, toBase64Url, 'base64url') },
  {
    name: 'bytes.fromUtf8',
    try(random) {
      const valid = Buffer.from(randomText(random, lengthOf(random, 60)));
      const bytes = mutateBytes(random, valid);
      const outcome = outcomeOf(() => fromUtf8(bytes), 'TypeError');
      if (outcome.accepted) demandEqual(new Uint8Array(Buffer.from(outcome.value, 'utf8')), bytes, 'the text, encoded again,');
      return agree(outcome.accepted, isUtf8(bytes));
    },
  },
];
