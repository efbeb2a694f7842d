import { door } from '../../../keyguard.ts';

export const GET = door.guarded(({ device }) => Response.json({ hello: device.label }));
