import OpenAI from 'openai';
import { KeyGuardClient } from '@keyguard/core';
import { fileKeyStore } from '@keyguard/storage-node/file';

const origin = process.env['KEYGUARD_URL'] ?? 'http://localhost:3000';
const guard = new KeyGuardClient({ origin, keyStore: fileKeyStore({ directory: '.keyguard' }) });
const device = await guard.enroll({ code: process.env['KEYGUARD_CODE'], label: 'quickstart' });
console.error(`device ${device.deviceId} is ${device.status}`);

const openai = new OpenAI({ baseURL: `${origin}/proxy/openai/v1`, apiKey: 'kept by KeyGuard', fetch: guard.fetch });
const stream = await openai.chat.completions.create({
  model: process.env['MODEL'] ?? 'keyguard-demo',
  messages: [{ role: 'user', content: 'Say hello from an enrolled device.' }],
  stream: true,
});
for await (const chunk of stream) process.stdout.write(chunk.choices[0]?.delta.content ?? '');
process.stdout.write('\n');
