/** `node`, on which Express and the other doors stand: streams that break off, come in pieces, or are longer than they say. */
import { PassThrough } from 'node:stream';
import type { IncomingMessage } from 'node:http';
import { readRawBody } from '@keyguard/server-verifier/node';
import { definePolicy } from '@keyguard/server-verifier/policy';
import { agree, demandEqual, outcomeOfLater, type Parser } from '../parser.ts';

const MAX_BYTES = 3000;
const policy = definePolicy({ authorities: ['keyguard.example.com'], maxBodyBytes: MAX_BYTES, maxUnverifiedBytes: 10 * MAX_BYTES });

export const RAW_BODY: readonly Parser[] = [
  {
    name: 'node.readRawBody',
    async try(random) {
      const chunks = Array.from({ length: random.below(6) }, () => random.bytes(1 + random.below(random.oneIn(8) ? 4000 : 700)));
      const whole = Buffer.concat(chunks);
      const declared = random.pick([undefined, String(whole.length), String(whole.length), '0', '1', '3000', '3001', String(whole.length + 1), '1e9', '0x10', '-1', 'NaN', '99999999999999999999']);
      const breaksOff = random.oneIn(10);
      const stream = Object.assign(new PassThrough(), { headers: declared === undefined ? {} : { 'content-length': declared } });
      let charged = 0;
      const reading = outcomeOfLater(() => readRawBody(stream as unknown as IncomingMessage, policy, (bytes) => (charged += bytes)), 'RejectedError body_too_large', 'RejectedError malformed_request');
      for (const chunk of chunks) stream.write(chunk);
      if (breaksOff) stream.destroy();
      else stream.end();
      const outcome = await reading;
      stream.destroy();
      if (outcome.accepted) demandEqual(Buffer.compare(outcome.value, whole) === 0 && charged >= whole.length, true, 'the body');
      return agree(outcome.accepted, !breaksOff && whole.length <= MAX_BYTES && !(/^[0-9]{1,15}$/.test(declared ?? '') && Number(declared) > MAX_BYTES));
    },
  },
];
