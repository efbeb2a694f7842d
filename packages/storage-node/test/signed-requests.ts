/** A device, the requests that it signs, and verifiers that know it: what a store is used by. */
import { utf8 } from '@keyguard/core/bytes';
import { generateKeyPair, signingKey } from '@keyguard/core/keys';
import { memoryDeviceRegistry } from '@keyguard/core/memory';
import type { PublicJwk, ReplayStore } from '@keyguard/core/seams';
import { createSigner } from '@keyguard/core/sign';
import { createVerifier, type IncomingRequest, type PolicyOptions, type Verifier, type VerifierOptions } from '@keyguard/server-verifier';

const AUTHORITY = 'api.example.com';
const TARGET = '/v1/chat/completions';

/** A request that can be sent to another process. */
export interface WrittenRequest {
  readonly rawHeaders: readonly string[];
  readonly body: string;
}

/** What a verifier must know of a device. */
export interface KnownDevice {
  readonly keyId: string;
  readonly publicKey: PublicJwk;
}

export interface SigningDevice {
  readonly device: KnownDevice;
  sign(nowMs: number): Promise<WrittenRequest>;
}

export async function signingDevice(): Promise<SigningDevice> {
  const key = await signingKey(await generateKeyPair());
  return {
    device: { keyId: key.keyId, publicKey: key.publicKey },
    async sign(nowMs) {
      const body = '{"model":"m"}';
      const headers: [string, string][] = [['content-type', 'application/json']];
      const signed = await createSigner({ key, clock: { nowMs: () => nowMs } })({
        method: 'POST',
        authority: AUTHORITY,
        target: TARGET,
        headers,
        body: utf8(body),
      });
      return { rawHeaders: ['Host', AUTHORITY, ...headers.flat(), ...Object.entries(signed).flat()], body };
    },
  };
}

/** What an adapter would hand over. */
export function readRequest({ rawHeaders, body }: WrittenRequest): IncomingRequest {
  return { method: 'POST', target: TARGET, rawHeaders, ip: null, body: () => utf8(body) };
}

export interface VerifierOfOptions extends Partial<Omit<VerifierOptions, 'policy'>> {
  readonly device: KnownDevice;
  readonly policy?: Partial<PolicyOptions>;
}

/** A verifier that knows this device and no other. */
export function verifierOf(replayStore: ReplayStore, { device, policy, ...options }: VerifierOfOptions): Verifier {
  const registry = memoryDeviceRegistry();
  registry.addCode({ codeHash: 'code', ownerId: 'owner', expiresAtMs: Infinity });
  registry.enroll({ ...device, codeHash: 'code', label: null, fingerprint: null, nowMs: 0 });
  return createVerifier({
    registry,
    ...options,
    replayStore,
    policy: { authorities: [AUTHORITY], requestsPerMinutePerIp: 1_000_000, ...policy },
  });
}
