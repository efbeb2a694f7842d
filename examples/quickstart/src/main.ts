/**
 * Enroll, sign, verify: the whole protocol in one process and thirty lines, with nothing but memory. A real application puts a
 * network between the two halves: `chat.ts` is the client's, `backend.ts` the server's.
 */
import { createSigner } from '@keyguard/core';
import { utf8 } from '@keyguard/core/bytes';
import { memoryDeviceRegistry, memoryKeyStore, memoryReplayStore } from '@keyguard/core/memory';
import { createVerifier } from '@keyguard/server-verifier';

// The server: who may call, what was used, what is demanded.
const registry = memoryDeviceRegistry();
// Nothing can have been accepted before: every key of this process is new.
const replayStore = memoryReplayStore({ startedAtMs: 0 });
const verifier = createVerifier({ registry, replayStore, policy: { authorities: ['api.example.com'] } });

// The device: a key that cannot be exported. Here the server takes it by hand; `enrollmentRouter` does it over HTTP, with proof.
const key = await memoryKeyStore().getOrCreate('device');
registry.addCode({ codeHash: 'by hand', ownerId: 'alice', expiresAtMs: Date.now() + 60_000 });
registry.enroll({ ...key, codeHash: 'by hand', label: 'laptop', fingerprint: null, nowMs: Date.now() });

const request = { method: 'POST', target: '/api/orders?dry=1', headers: [['content-type', 'application/json']] as [string, string][], body: utf8('{"n":1}') };
const signature = await createSigner({ key })({ ...request, authority: 'api.example.com' });
const rawHeaders = [...request.headers, ...Object.entries(signature)].flat();

const verified = await verifier.verify({ ...request, rawHeaders, ip: '127.0.0.1', body: () => request.body });
console.log(`verified: ${verified.method} ${verified.path} by ${verified.device.ownerId}'s ${verified.device.label}`);

const again = await verifier.verify({ ...request, rawHeaders, ip: '127.0.0.1', body: () => request.body }).catch((error: { code: string }) => error);
console.log('the same request again:', 'code' in again ? again.code : 'accepted');
