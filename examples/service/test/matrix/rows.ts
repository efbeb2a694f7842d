/**
 * One row for each operation of the control plane: what to send, and what each principal must be answered. A new operation without
 * a row fails `matrix.test.ts`.
 */
import { PRINCIPALS, type Who } from './stage.ts';
import { newApiKey, newDevice, newEnrollmentCode, newProject, newRole, newSecret, newServiceAccount, newSession, newShare, newSharedSecret, type World } from './world.ts';

export interface Call {
  readonly params?: Readonly<Record<string, string>>;
  readonly query?: string;
  readonly body?: object;
  readonly headers?: Readonly<Record<string, string>>;
}

export type Statuses = Readonly<Record<Who, number>>;

export interface Row {
  /** Made anew after each call that was let do something, because most of those use up what they are about. */
  readonly call?: (world: World, who: Who) => Promise<Call> | Call;
  readonly answers: Statuses;
}

/** One status for everyone but these. */
const all = (status: number, except: Partial<Statuses> = {}): Statuses =>
  ({ ...Object.fromEntries(PRINCIPALS.map((who) => [who, status])), ...except }) as Statuses;
/** For everyone who is signed in; what they see is their own. */
const signedIn = (status: number, except: Partial<Statuses> = {}): Statuses => all(status, { anonymous: 401, ...except });
/** About a thing of the owner's that nobody else has anything to do with. */
const owners = (status: number, except: Partial<Statuses> = {}): Statuses => signedIn(404, { owner: status, ...except });
/** Of administrators alone. */
const administrators = (status: number, except: Partial<Statuses> = {}): Statuses => signedIn(403, { administrator: status, ...except });

/** Not for programs, which are refused before anything is looked at. */
const NO_PROGRAM: Partial<Statuses> = { service_account: 403 };
const nobody = (): Call => ({ params: { id: '00000000-0000-4000-8000-000000000000' } });
const ownerOf = (world: World): Call => ({ params: { id: world.people.owner.userId } });
const role = async (world: World): Promise<Call> => ({ params: { id: await newRole(world) } });
const project = async (world: World): Promise<Call> => ({ params: { id: await newProject(world) } });
const serviceAccount = async (world: World): Promise<Call> => ({ params: { id: await newServiceAccount(world) } });

const apiKey = async (world: World): Promise<Call> => ({ params: { id: await newApiKey(world) } });
const device = async (world: World): Promise<Call> => ({ params: { id: await newDevice(world) } });

/** So that there is a checkpoint of all there is. */
const signed = async ({ stage, tokenOf }: World): Promise<Call> => {
  await stage.call('POST', '/api/audit/checkpoint', { token: tokenOf('administrator')! });
  return {};
};

/** The number of something that the owner did. */
async function ownersEntry({ stage, people }: World): Promise<string> {
  const { rows } = await stage.sql.query<{ seq: unknown }>('SELECT seq FROM keyguard.secret_audit_logs WHERE actor = $1 ORDER BY seq LIMIT 1', [`user:${people.owner.userId}`]);
  return String(rows[0]!.seq);
}

const secret = async (world: World): Promise<Call> => ({ params: { id: await newSharedSecret(world) } });
const secretVersion = async (world: World): Promise<Call> => ({ params: { id: await newSharedSecret(world), version: '1' } });
/** What a share lets do: to read, to write, and what neither does. */
const toRead = (status: number): Statuses => owners(status, { shared_read: status, shared_write: status });
const toWrite = (status: number): Statuses => owners(status, { shared_read: 403, shared_write: status });
const notShared = (status: number): Statuses => owners(status, { shared_read: 403, shared_write: 403 });

const BUDGET = { period: 'day', max_requests: 10, max_tokens: null, max_cost_micros: null };

export const ROWS: Readonly<Record<string, Row>> = {
  getOpenApiDocument: { answers: all(200) },

  setUp: { call: () => ({ body: { code: '0', email: 'late@example.com', password: 'a long and quiet password' } }), answers: all(409) },
  // With what is refused before it does anything: whom it signs in, out or slows down, the other rows need.
  signIn: { call: () => ({ body: {} }), answers: all(400) },
  signOut: { call: () => ({ body: { everywhere: true } }), answers: all(400) },
  changePassword: { call: () => ({ body: { current_password: 'x', new_password: 'short' } }), answers: signedIn(400, { service_account: 403 }) },
  revokeOtherSessions: { answers: signedIn(200, { service_account: 403 }) },
  getSession: { answers: signedIn(200, { service_account: 401 }) },
  getToken: { answers: signedIn(200, { service_account: 403 }) },
  getJwks: { answers: all(200) },

  // No provider is configured here.
  startOidcSignIn: { answers: all(404) },
  finishOidcSignIn: { answers: all(404) },

  getSecondFactor: { answers: signedIn(200, { service_account: 403 }) },
  // With a password that nobody has here, and codes of nothing: a second factor would shut the other rows out.
  beginSecondFactor: { call: () => ({ body: { password: 'not the password of anybody' } }), answers: signedIn(400, { service_account: 403 }) },
  activateSecondFactor: { call: () => ({ body: { code: '123456' } }), answers: signedIn(409, { service_account: 403 }) },
  stepUp: { call: () => ({ body: { code: '123456' } }), answers: signedIn(409, { service_account: 403 }) },
  renewBackupCodes: { call: () => ({ body: { code: '123456' } }), answers: signedIn(409, { service_account: 403 }) },
  disableSecondFactor: { call: () => ({ body: { password: 'a long and quiet password', code: '123456' } }), answers: signedIn(409, { service_account: 403 }) },
  listSessions: { answers: signedIn(200, { service_account: 403 }) },
  endSession: { call: async (world) => ({ params: { id: await newSession(world) } }), answers: owners(204, { administrator: 204, service_account: 403 }) },
  // It would end what the other rows call with.
  endOtherSessions: { call: () => ({ body: { everywhere: true } }), answers: all(400) },
  endSessionsOfUser: { call: () => ({ params: { id: 'nobody' } }), answers: administrators(404) },
  unlockUser: { call: ({ people }) => ({ params: { id: people.owner.userId } }), answers: administrators(204) },
  createInvitation: { call: () => ({ body: { email: `guest-${Math.random().toString(36).slice(2)}@example.com` } }), answers: administrators(201) },
  listInvitations: { answers: administrators(200) },
  revokeInvitation: { call: () => ({ params: { id: '00000000-0000-4000-8000-000000000000' } }), answers: administrators(404) },
  approveInvitation: { call: nobody, answers: administrators(404) },
  acceptInvitation: { call: () => ({ body: { token: 'kgi_x', password: 'a long and quiet password', name: 'X' } }), answers: all(403) },
  createPasswordReset: { call: ({ people }) => ({ params: { id: people.owner.userId }, body: {} }), answers: administrators(201) },
  acceptPasswordReset: { call: () => ({ body: { token: 'kgr_x', password: 'a long and quiet password' } }), answers: all(403) },
  removeSecondFactor: { call: ({ people }) => ({ params: { id: people.owner.userId } }), answers: administrators(404) },

  createEnrollmentCode: { call: () => ({ body: {} }), answers: signedIn(201) },
  listEnrollmentCodes: { answers: signedIn(200) },
  revokeEnrollmentCode: { call: async (world) => ({ params: { id: (await newEnrollmentCode(world)).id } }), answers: owners(204, { administrator: 204 }) },
  listDevices: { answers: signedIn(200) },
  getDevice: { call: device, answers: owners(200, { administrator: 200 }) },
  // Limits are an administrator's to set, for they bind the owner.
  updateDevice: { call: async (world) => ({ ...(await device(world)), body: { requests_per_minute: 60 } }), answers: owners(403, { administrator: 200 }) },
  approveDevice: { call: device, answers: owners(403, { administrator: 200 }) },
  suspendDevice: { call: device, answers: owners(409, { administrator: 409 }) },
  resumeDevice: { call: device, answers: owners(409, { administrator: 409 }) },
  revokeDevice: { call: device, answers: owners(200, { administrator: 200 }) },
  createRotationCode: { call: async (world) => ({ ...(await device(world)), body: {} }), answers: owners(409, { administrator: 409 }) },

  getDeviceBudget: { call: device, answers: owners(200, { administrator: 200 }) },
  setDeviceBudget: { call: async (world) => ({ ...(await device(world)), body: BUDGET }), answers: administrators(200) },
  endDeviceBudget: { call: device, answers: administrators(204) },
  getProjectBudget: { call: project, answers: owners(200, { administrator: 200 }) },
  setProjectBudget: { call: async (world) => ({ ...(await project(world)), body: BUDGET }), answers: administrators(200) },
  endProjectBudget: { call: project, answers: administrators(204) },

  createApiKey: { call: () => ({ body: { provider: 'openai', value: 'sk-of-nobody-in-particular' } }), answers: administrators(201) },
  listApiKeys: { answers: signedIn(200) },
  getApiKey: { call: apiKey, answers: owners(200, { administrator: 200 }) },
  updateApiKey: { call: async (world) => ({ ...(await apiKey(world)), body: { expires_at: null } }), answers: owners(200, { administrator: 200 }) },
  setDefaultApiKey: { call: apiKey, answers: owners(200, { administrator: 200 }) },
  // Nobody listens at the provider's address here, and that is what is answered.
  testApiKey: { call: apiKey, answers: owners(200, { administrator: 200 }) },
  rotateApiKey: { call: async (world) => ({ ...(await apiKey(world)), body: { value: 'sk-of-nobody-else-either', verify: false } }), answers: owners(200, { administrator: 200 }) },
  listApiKeyVersions: { call: apiKey, answers: owners(200, { administrator: 200 }) },
  restoreApiKeyVersion: {
    async call(world) {
      const id = await newApiKey(world);
      await world.make('owner', `/api/api-keys/${id}/rotate`, { value: 'sk-of-nobody-else-either', verify: false });
      return { params: { id, version: '1' }, body: { verify: false } };
    },
    answers: owners(200, { administrator: 200 }),
  },
  revokeApiKey: { call: apiKey, answers: owners(200, { administrator: 200 }) },
  getApiKeyUsage: { call: apiKey, answers: owners(200, { administrator: 200 }) },

  createSecret: { call: (world, who) => ({ body: { name: world.name('new-secret', [who]), value: 'a value' } }), answers: signedIn(201) },
  listSecrets: { call: async (world) => { await newSecret(world); return {}; }, answers: signedIn(200) },
  generateValue: { call: () => ({ body: { kind: 'uuid' } }), answers: signedIn(200) },
  importSecrets: { call: (_, who) => ({ body: { text: `OF_${who.toUpperCase()}=1` } }), answers: signedIn(200) },
  exportSecrets: { call: async (world) => { await newSecret(world); return { body: {} }; }, answers: signedIn(200) },
  getSecret: { call: secret, answers: toRead(200) },
  updateSecret: { call: async (world) => ({ ...(await secret(world)), body: { tags: [] } }), answers: toWrite(200) },
  deleteSecret: { call: secret, answers: notShared(204) },
  revealSecret: { call: async (world) => ({ ...(await secret(world)), body: {} }), answers: toRead(200) },
  addSecretVersion: { call: async (world) => ({ ...(await secret(world)), body: { value: 'a value' } }), answers: toWrite(201) },
  listSecretVersions: { call: secret, answers: toRead(200) },
  restoreSecretVersion: { call: secretVersion, answers: toWrite(201) },
  destroySecretVersion: { call: secretVersion, answers: notShared(204) },

  shareSecret: { call: async (world) => ({ ...(await secret(world)), body: { grantee: { type: 'user', id: world.people.shared_read.userId }, permission: 'read' } }), answers: notShared(201) },
  listShares: { call: secret, answers: notShared(200) },
  revokeShare: {
    async call(world) {
      const id = await newSharedSecret(world);
      return { params: { id, share_id: await newShare(world, id, 'shared_read') } };
    },
    // Whom a share is given to may give it up.
    answers: owners(204, { shared_read: 204 }),
  },
  listSharedWithMe: { call: async (world) => { await newSharedSecret(world); return {}; }, answers: signedIn(200) },
  createSecretLink: { call: async (world) => ({ ...(await secret(world)), body: {} }), answers: notShared(201) },
  // What opens for whoever has the link is in shares-links.slow.test.ts; nobody has this one.
  openSecretLink: { call: () => ({ params: { token: `kgl_${'A'.repeat(43)}` }, body: {} }), answers: all(404) },

  getUsage: { answers: signedIn(200) },
  listAuditEntries: { answers: signedIn(200) },
  getAuditTimeline: { call: ({ people }) => ({ query: `?user=${people.owner.userId}` }), answers: signedIn(200) },
  listAuditMacKeys: { answers: administrators(200) },
  rotateAuditMacKey: { answers: administrators(202) },
  verifyAuditLog: { answers: administrators(200) },
  exportAuditLog: { answers: signedIn(403, { administrator: 200 }) },
  getAuditCheckpoint: { call: signed, answers: signedIn(200) },
  signAuditCheckpoint: { answers: administrators(201) },
  getAuditVerifierKey: { answers: signedIn(200) },
  proveAuditEntry: { call: async (world) => ({ ...(await signed(world)), params: { seq: await ownersEntry(world) } }), answers: owners(200, { administrator: 200 }) },
  proveAuditConsistency: { call: async (world) => ({ ...(await signed(world)), query: '?from=0' }), answers: signedIn(200) },

  rotateKek: { answers: administrators(201) },
  listKekRotations: { answers: administrators(200) },
  getKekRotation: { call: () => ({ params: { id: '00000000-0000-4000-8000-000000000000' } }), answers: administrators(404) },
  listKeks: { answers: administrators(200) },
  destroyKek: { call: () => ({ params: { id: 'kek-00000000-0000-4000-8000-000000000000' } }), answers: administrators(404) },

  getSettings: { answers: administrators(200) },
  changeSettings: { call: () => ({ body: { links: { max_views: 3 } }, headers: { 'if-match': '*' } }), answers: administrators(200) },
  listSettingsVersions: { answers: administrators(200) },

  listRoles: { answers: signedIn(200, NO_PROGRAM) },
  getRole: { call: role, answers: signedIn(200, NO_PROGRAM) },
  createRole: { call: (world) => ({ body: { name: world.roleName(), permissions: ['usage:read'] } }), answers: administrators(201) },
  updateRole: { call: async (world) => ({ ...(await role(world)), body: { description: 'Changed.' } }), answers: administrators(200) },
  deleteRole: { call: role, answers: administrators(204) },
  listUserRoles: { call: ownerOf, answers: owners(200, { administrator: 200, ...NO_PROGRAM }) },
  grantUserRole: { call: async (world) => ({ ...ownerOf(world), body: { role_id: await newRole(world) } }), answers: administrators(201) },
  revokeUserRole: {
    async call(world) {
      const { id } = await world.make('administrator', `/api/users/${world.people.owner.userId}/roles`, { role_id: await newRole(world) });
      return { params: { id: world.people.owner.userId, assignment_id: id! } };
    },
    answers: administrators(204),
  },
  listUsers: { answers: administrators(200) },
  getMe: { answers: signedIn(200, NO_PROGRAM) },
  getUser: { call: ownerOf, answers: owners(200, { administrator: 200, ...NO_PROGRAM }) },
  // Of nobody: the others are needed as they are.
  makeAdministrator: { call: nobody, answers: administrators(404) },
  unmakeAdministrator: { call: nobody, answers: administrators(404) },
  listAdministratorRequests: { answers: administrators(200) },
  withdrawAdministratorRequest: { call: nobody, answers: administrators(404) },
  disableUser: { call: nobody, answers: administrators(404) },
  enableUser: { call: nobody, answers: administrators(404) },

  listProjects: { answers: signedIn(200) },
  createProject: { call: () => ({ body: { name: 'A project' } }), answers: signedIn(201) },
  getProject: { call: project, answers: owners(200, { administrator: 200 }) },
  updateProject: { call: async (world) => ({ ...(await project(world)), body: { environment: 'test' } }), answers: owners(200, { administrator: 200 }) },
  archiveProject: { call: project, answers: owners(200, { administrator: 200 }) },
  listProjectMembers: { call: project, answers: owners(200, { administrator: 200 }) },

  listServiceAccounts: { answers: signedIn(200, NO_PROGRAM) },
  createServiceAccount: { call: () => ({ body: { name: 'A robot', scopes: ['usage:read'] } }), answers: signedIn(201, NO_PROGRAM) },
  getServiceAccount: { call: serviceAccount, answers: owners(200, { administrator: 200, ...NO_PROGRAM }) },
  updateServiceAccount: { call: async (world) => ({ ...(await serviceAccount(world)), body: { scopes: ['audit:read'] } }), answers: owners(200, { administrator: 403, ...NO_PROGRAM }) },
  rotateServiceAccountToken: { call: async (world) => ({ ...(await serviceAccount(world)), body: {} }), answers: owners(200, { administrator: 403, ...NO_PROGRAM }) },
  disableServiceAccount: { call: serviceAccount, answers: owners(200, { administrator: 200, ...NO_PROGRAM }) },
  enableServiceAccount: { call: serviceAccount, answers: owners(200, { administrator: 200, ...NO_PROGRAM }) },
  deleteServiceAccount: { call: serviceAccount, answers: owners(204, { administrator: 204, ...NO_PROGRAM }) },
};
